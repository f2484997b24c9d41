#include "worker/train/data/documents.h"

#include <algorithm>
#include <bit>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace lemo::train {

std::optional<Overlong> OverlongFromName(std::string_view name) {
  if (name.empty() || name == "auto") return Overlong::kAuto;
  if (name == "error") return Overlong::kError;
  if (name == "truncate") return Overlong::kTruncate;
  if (name == "split") return Overlong::kSplit;
  if (name == "drop") return Overlong::kDrop;
  return std::nullopt;
}

void DocumentWriter::Begin(const RowPlace& place) {
  place_ = place;
  row_tokens_ = row_labels_ = written_tokens_ = written_labels_ = 0;
  faulty_ = false;
  tokens_.clear();
  trained_.clear();
}

void DocumentWriter::Fault(std::string reason) {
  faulty_ = true;
  violations_->Add(Violation{.field = place_.field,
                             .reason = std::move(reason),
                             .file = place_.file,
                             .line = place_.line});
}

int64_t DocumentWriter::LabelsGathered() const {
  if (trained_.empty()) return 0;
  return std::count(trained_.begin() + 1, trained_.end(), 1);
}

absl::Status DocumentWriter::Append(std::span<const int32_t> tokens,
                                    std::span<const uint8_t> trained,
                                    std::span<const int64_t> lines) {
  const auto max_length = static_cast<size_t>(limits_.max_length);
  for (size_t i = 0; i < tokens.size() && !hopeless_; ++i) {
    if (limits_.vocabulary > 0 && tokens[i] >= limits_.vocabulary) {
      hopeless_ = true;
      Fault(absl::StrCat("has token ", tokens[i], ", but the model's embedding has ",
                         limits_.vocabulary, " entries: the tokenizer does not fit the model"));
      break;
    }
    if (row_tokens_ > 0 && trained[i] != 0) ++row_labels_;
    ++row_tokens_;
    if (tokens_.size() == max_length) {
      if (limits_.overlong != Overlong::kSplit) continue;
      LEMO_RETURN_IF_ERROR(Flush());
    }
    if (tokens_.empty()) first_line_ = lines.empty() ? place_.line : lines[i];
    tokens_.push_back(tokens[i]);
    trained_.push_back(trained[i] != 0 ? 1 : 0);
  }
  return absl::OkStatus();
}

absl::Status DocumentWriter::Flush() {
  const int64_t labels = LabelsGathered();
  const auto length = static_cast<int64_t>(tokens_.size());
  if (labels > 0) {
    if (violations_->empty()) {
      LEMO_RETURN_IF_ERROR(
          writer_->Add(tokens_, trained_, first_line_, static_cast<int32_t>(labels)));
    }
    ++counts_->documents;
    counts_->tokens += length;
    counts_->labels += labels;
    counts_->longest_document = std::max(counts_->longest_document, length);
    ++counts_->length_histogram[static_cast<size_t>(std::bit_width(static_cast<uint64_t>(length)) -
                                                    1)];
    written_tokens_ += length;
    written_labels_ += labels;
  } else {
    ++counts_->pieces_without_labels;
  }
  tokens_.clear();
  trained_.clear();
  return absl::OkStatus();
}

absl::Status DocumentWriter::End() {
  ++counts_->rows;
  if (faulty_) return absl::OkStatus();
  const bool overlong = row_tokens_ > limits_.max_length;
  const std::string too_long =
      absl::StrCat("has ", row_tokens_, " tokens, more than max_length ", limits_.max_length);
  if (row_labels_ == 0) {
    Fault(
        "no token of the row would be trained (no assistant turn or completion carries loss, or it "
        "is "
        "empty)");
    return absl::OkStatus();
  }
  if (overlong && limits_.overlong == Overlong::kError) {
    Fault(absl::StrCat(too_long, "; data.overlong may be truncate, split or drop"));
    return absl::OkStatus();
  }
  if (overlong && limits_.overlong == Overlong::kDrop) {
    ++counts_->rows_dropped;
  } else {
    if (overlong && limits_.overlong == Overlong::kTruncate && LabelsGathered() == 0) {
      Fault(absl::StrCat(too_long, ", and every trained token would be lost by truncating it"));
      return absl::OkStatus();
    }
    LEMO_RETURN_IF_ERROR(Flush());
    if (written_labels_ == 0) {
      Fault(absl::StrCat(too_long, ", and every trained token would be lost by splitting it"));
      return absl::OkStatus();
    }
    if (overlong && limits_.overlong == Overlong::kTruncate) ++counts_->rows_truncated;
    if (overlong && limits_.overlong == Overlong::kSplit) ++counts_->rows_split;
  }
  counts_->tokens_lost += row_tokens_ - written_tokens_;
  counts_->labels_lost += row_labels_ - written_labels_;
  return absl::OkStatus();
}

}  // namespace lemo::train
