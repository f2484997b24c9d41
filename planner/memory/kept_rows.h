// Rows that a choice of blocks leaves of a micro-batch, as worker/train/tokens/selection.h makes
// it.
#pragma once

#include <cstdint>
#include <span>

namespace lemo::planner {

struct BlockOptions {
  double keep = 1;           // share of a document's blocks
  int64_t block = 64;        // rows
  int64_t sink_blocks = 1;   // first blocks of a document, always kept
  int64_t local_blocks = 1;  // last blocks
};

struct KeptRows {
  int64_t rows = 0;
  int64_t longest = 0;  // of the document that has most of them
  // What layers that choose for themselves make room for: blocks as if all were whole.
  int64_t reserved = 0;
};

// Of documents with these lengths in rows. Blocks that are kept for their labels are not counted.
KeptRows KeepRows(std::span<const int64_t> documents, const BlockOptions& options);

}  // namespace lemo::planner
