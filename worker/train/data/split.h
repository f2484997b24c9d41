// A micro-batch as several smaller ones.
//
// Attention stays inside a document and everything else is row by row, so a cut between two
// documents changes no row's result; the loss divides by the labels of the whole effective batch,
// so it changes no sum either, but for the order of additions. Documents themselves are not cut.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "worker/train/data/batch.h"

namespace lemo::train {

// Documents of each part, as first one and one past the last: in order, as many as stay within
// `rows`, a longer one by itself. `document_starts` as in MicroBatch; `rows` above 0.
struct DocumentRange {
  int64_t first = 0, last = 0;
  bool operator==(const DocumentRange&) const = default;
};
std::vector<DocumentRange> SplitDocuments(std::span<const int32_t> document_starts, int64_t rows);

// These documents of `batch`, by themselves.
MicroBatch PartOf(const MicroBatch& batch, const DocumentRange& documents);

}  // namespace lemo::train
