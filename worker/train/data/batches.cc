#include "worker/train/data/batches.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/violations.h"
#include "worker/train/data/random.h"
#include "worker/train/data/shares.h"

namespace lemo::train {
namespace {

// Adds a document behind those that `batch` has, but for its positions.
void Append(const Document& document, MicroBatch* batch) {
  if (batch->document_starts.empty()) batch->document_starts.push_back(0);
  const size_t length = document.tokens.size();
  batch->tokens.insert(batch->tokens.end(), document.tokens.begin(), document.tokens.end());
  for (size_t i = 0; i < length; ++i) {
    const bool labelled = i + 1 < length && document.trained[i + 1] != 0;
    batch->labels.push_back(labelled ? document.tokens[i + 1] : kIgnoreLabel);
  }
  batch->document_starts.push_back(static_cast<int32_t>(batch->rows()));
}

bool Fits(const MicroBatch& batch, int64_t more, int64_t limit) {
  return batch.rows() == 0 || batch.rows() + more <= limit;
}

}  // namespace

BatchStream::BatchStream(const Dataset* data, const BatchOptions& options)
    : data_(data),
      options_(options),
      order_(data, OrderOptions{.seed = options.seed,
                                .max_length = options.max_length,
                                .packing = options.packing}) {}

absl::StatusOr<BatchStream> BatchStream::Create(const Dataset* data, const BatchOptions& options) {
  Violations faults;
  if (options.max_length < 1) faults.Add("data.max_length", "must be above 0");
  if ((options.batch_sequences > 0) == (options.batch_tokens > 0)) {
    faults.Add("train.batch_sequences", "give either this or batch_tokens");
  }
  if (options.micro_batch_tokens < 0)
    faults.Add("train.micro_batch_tokens", "must not be negative");
  if (data->rows() == 0) faults.Add("data.train", "has no documents");
  if (data->longest() > options.max_length) {
    faults.Add("data.max_length", absl::StrCat("is ", options.max_length, ", but a document has ",
                                               data->longest(), " tokens"));
  }
  LEMO_RETURN_IF_ERROR(faults.ToStatus());
  BatchOptions filled = options;
  if (filled.micro_batch_tokens == 0) filled.micro_batch_tokens = filled.max_length;
  return BatchStream(data, filled);
}

template <typename Take>
void BatchStream::ForBatch(SequenceOrder* order, Take take) const {
  const int64_t epoch = order->epoch();
  int64_t sequences = 0;
  int64_t tokens = 0;
  do {
    const int64_t more = order->tokens();
    const bool full = options_.batch_sequences > 0 ? sequences == options_.batch_sequences
                                                   : tokens + more > options_.batch_tokens;
    if (sequences > 0 && full) return;
    take(order->documents(), more);
    ++sequences;
    tokens += more;
    order->Advance();
  } while (order->epoch() == epoch);
}

std::vector<BatchStream::Sequence> BatchStream::Divide(SequenceOrder* order) const {
  std::vector<Sequence> sequences;
  std::vector<double> costs;
  int64_t place = 0;
  ForBatch(order, [&](const std::vector<int64_t>& documents, int64_t tokens) {
    sequences.push_back({.documents = documents, .tokens = tokens, .place = place});
    std::vector<int64_t> lengths;
    lengths.reserve(documents.size());
    for (const int64_t i : documents) lengths.push_back(data_->length(i));
    costs.push_back(SequenceCost(lengths, options_.attention_length));
    place += tokens;
  });
  const std::vector<int> share_of = ShareOut(costs, options_.shares);
  // Of each share: its last micro-batch, and the rows of that.
  std::vector<int64_t> last(options_.shares, -1), rows(options_.shares);
  for (size_t s = 0; s < sequences.size(); ++s) {
    Sequence& sequence = sequences[s];
    const int share = sequence.share = share_of[s];
    const bool starts_anew =
        last[share] < 0 || rows[share] + sequence.tokens > options_.micro_batch_tokens;
    if (starts_anew) {
      ++last[share];
      rows[share] = 0;
    }
    rows[share] += sequence.tokens;
    sequence.micro_batch = last[share];
  }
  return sequences;
}

Batch BatchStream::Next() {
  Batch batch;
  // A batch lies within an epoch.
  const uint64_t skip_key =
      MixKeys(options_.seed, kPositionSkips, static_cast<uint64_t>(order_.epoch()));
  for (const Sequence& sequence : Divide(&order_)) {
    ++batch.sequences;
    batch.tokens += sequence.tokens;
    batch.rounds = std::max(batch.rounds, sequence.micro_batch + 1);
    for (const int64_t i : sequence.documents) batch.labelled_tokens += data_->row(i).labels;
    if (sequence.share != options_.share) continue;
    if (sequence.micro_batch == std::ssize(batch.micro_batches)) batch.micro_batches.emplace_back();
    MicroBatch& micro_batch = batch.micro_batches.back();
    int64_t place = sequence.place;
    for (const int64_t i : sequence.documents) {
      Append(data_->row(i), &micro_batch);
      AppendPositions(options_.skip, MixBits(skip_key ^ static_cast<uint64_t>(i)), data_->length(i),
                      &micro_batch.positions);
      micro_batch.document_rows.push_back(i);
      micro_batch.document_places.push_back(place);
      place += data_->length(i);
    }
  }
  return batch;
}

std::vector<BatchStream::BatchAhead> BatchStream::LargestAhead(
    int64_t batches, const std::function<double(int64_t index)>& weight) const {
  struct Place {
    int64_t index = 0;
    DataCursor cursor;
  };
  Place largest, longest;
  double most_rows = -1, most_of_one = -1, of_one_in_largest = -1;
  SequenceOrder order = order_;
  for (int64_t index = 0; index < batches; ++index) {
    const Place here = {index, {order.epoch(), order.sequence()}};
    std::map<std::pair<int, int64_t>, int64_t> micro_batches;  // rows, by share and number
    int64_t rows = 0, of_one = 0;
    for (const Sequence& sequence : Divide(&order)) {
      int64_t& now = micro_batches[{sequence.share, sequence.micro_batch}];
      rows = std::max(rows, now += sequence.tokens);
      for (const int64_t i : sequence.documents) of_one = std::max(of_one, data_->length(i));
    }
    const double counts = weight(index);
    if (counts * static_cast<double>(rows) > most_rows) {
      most_rows = counts * static_cast<double>(rows);
      of_one_in_largest = counts * static_cast<double>(of_one);
      largest = here;
    }
    if (counts * static_cast<double>(of_one) > most_of_one) {
      most_of_one = counts * static_cast<double>(of_one);
      longest = here;
    }
  }
  std::vector<BatchAhead> ahead;
  for (const Place& place : {largest, longest}) {
    BatchStream there = *this;
    there.order_.Seek(place.cursor.epoch, place.cursor.sequence);
    ahead.push_back({place.index, there.Next()});
    if (of_one_in_largest == most_of_one) break;
  }
  return ahead;
}

absl::Status BatchStream::Seek(const DataCursor& cursor) {
  if (cursor.epoch < 0 || cursor.sequence < 0 || cursor.sequence > SequencesPerEpoch()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the data has no place epoch ", cursor.epoch, ", sequence ", cursor.sequence,
                     "; an epoch has ", SequencesPerEpoch(), " sequences"));
  }
  const bool over = cursor.sequence == SequencesPerEpoch();
  order_.Seek(cursor.epoch + (over ? 1 : 0), over ? 0 : cursor.sequence);
  return absl::OkStatus();
}

int64_t BatchStream::StepsInEpoch(int64_t epoch) const {
  if (options_.batch_sequences > 0) {
    return (SequencesPerEpoch() + options_.batch_sequences - 1) / options_.batch_sequences;
  }
  SequenceOrder order = order_;
  order.Seek(epoch, 0);
  int64_t steps = 0;
  for (; order.epoch() == epoch; ++steps) ForBatch(&order, [](const auto&, int64_t) {});
  return steps;
}

int64_t BatchStream::StepsForEpochs(double epochs) const {
  const auto whole = static_cast<int64_t>(std::floor(epochs));
  int64_t steps = 0;
  if (options_.batch_sequences > 0) {
    steps = whole * StepsInEpoch(0);
  } else {
    for (int64_t epoch = 0; epoch < whole; ++epoch) steps += StepsInEpoch(epoch);
  }
  const auto sequences = static_cast<int64_t>(
      std::ceil((epochs - static_cast<double>(whole)) * static_cast<double>(SequencesPerEpoch())));
  if (sequences == 0) return steps;
  SequenceOrder order = order_;
  order.Seek(whole, 0);
  while (order.epoch() == whole && order.sequence() < sequences) {
    ForBatch(&order, [](const auto&, int64_t) {});
    ++steps;
  }
  return steps;
}

int64_t BatchStream::MaxMicroBatchRows() const {
  const int64_t longest = order_.longest_sequence();
  const int64_t batch = options_.batch_sequences > 0 ? options_.batch_sequences * longest
                                                     : std::max(options_.batch_tokens, longest);
  return std::max(longest, std::min(options_.micro_batch_tokens, batch));
}

EvalBatches::EvalBatches(const Dataset* data, int64_t micro_batch_tokens, int64_t max_documents)
    : data_(data),
      micro_batch_tokens_(micro_batch_tokens),
      end_(max_documents > 0 ? std::min(max_documents, data->rows()) : data->rows()) {}

std::optional<MicroBatch> EvalBatches::Next() {
  if (next_ >= end_) return std::nullopt;
  MicroBatch batch;
  while (next_ < end_ && Fits(batch, data_->length(next_), micro_batch_tokens_)) {
    Append(data_->row(next_), &batch);
    AppendPositions({}, 0, data_->length(next_), &batch.positions);
    ++next_;
  }
  return batch;
}

int64_t EvalBatches::MaxMicroBatchRows() const {
  return std::max(data_->longest(), std::min(micro_batch_tokens_, data_->tokens()));
}

}  // namespace lemo::train
