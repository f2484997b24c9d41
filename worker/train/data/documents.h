// From tokenised rows to documents that fit: what happens to overlong rows, and which rows are of
// no use.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "common/violations.h"
#include "worker/train/data/cache.h"
#include "worker/train/data/counts.h"
#include "worker/train/data/rows.h"

namespace lemo::train {

// kAuto: split for books, error for the rest.
enum class Overlong { kAuto, kError, kTruncate, kSplit, kDrop };

// `auto`, `error`, `truncate`, `split`, `drop`; "" means auto. Absent for another name.
std::optional<Overlong> OverlongFromName(std::string_view name);

struct DocumentLimits {
  int64_t max_length = 0;
  Overlong overlong = Overlong::kError;  // not kAuto
  int32_t vocabulary = 0;                // ids from here on do not exist; 0 for any
};

// Takes the tokens of one row after another, in as many parts as the caller likes, in memory of
// max_length. For every row: Begin, Append..., End. Faults go to `violations`; a row with one gives
// no document. Once there is a fault no more is written (the cache will not be used), but rows are
// still checked. Not thread-safe. The pointers must outlive the object.
class DocumentWriter {
 public:
  DocumentWriter(const DocumentLimits& limits, CacheWriter* writer, DataCounts* counts,
                 Violations* violations)
      : limits_(limits), writer_(writer), counts_(counts), violations_(violations) {}

  void Begin(const RowPlace& place);
  // `lines` is as long as `tokens`, or empty when all stand on the row's line.
  absl::Status Append(std::span<const int32_t> tokens, std::span<const uint8_t> trained,
                      std::span<const int64_t> lines);
  absl::Status End();

  // A token outside the vocabulary was seen: the tokenizer does not fit the model, and reading on
  // would only say so again.
  bool hopeless() const { return hopeless_; }

 private:
  // Writes what was gathered as a document, if it has a label.
  absl::Status Flush();
  void Fault(std::string reason);
  int64_t LabelsGathered() const;

  const DocumentLimits limits_;
  CacheWriter* writer_;
  DataCounts* counts_;
  Violations* violations_;
  bool hopeless_ = false;

  // The row at hand.
  RowPlace place_;
  int64_t row_tokens_ = 0;
  int64_t row_labels_ = 0;      // trained tokens but the first
  int64_t written_tokens_ = 0;  // in documents of this row
  int64_t written_labels_ = 0;
  bool faulty_ = false;
  // Of it, what is no document yet.
  std::vector<int32_t> tokens_;
  std::vector<uint8_t> trained_;
  int64_t first_line_ = 0;
};

}  // namespace lemo::train
