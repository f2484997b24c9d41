// Blocks: runs of neighbouring rows of one document, the unit that is kept or dropped.
//
// The specification lets a block span two packed documents and then always keeps it. Here blocks
// start anew at every document, so none is kept for that reason alone.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lemo::train {

// One entry a block, 1 for kept.
using BlockMask = std::vector<uint8_t>;

struct BlockLayout {
  std::vector<int32_t> starts;     // first row of every block, ascending, and the number of rows
  std::vector<int32_t> documents;  // first block of every document, and the number of blocks

  int64_t blocks() const { return static_cast<int64_t>(starts.size()) - 1; }
  int64_t rows() const { return starts.back(); }
  int64_t rows_of(int64_t block) const { return starts[block + 1] - starts[block]; }
};

// Blocks of `block_rows` rows, the last of a document as long as what is left. `document_starts` as
// in MicroBatch: first row of every document and the number of rows; no document is empty.
BlockLayout MakeBlocks(std::span<const int32_t> document_starts, int64_t block_rows);

// What is left of `blocks` when only those of `kept` stay. Documents of which nothing stays vanish.
BlockLayout KeepBlocks(const BlockLayout& blocks, const BlockMask& kept);

// The blocks that `kept` leaves out.
BlockMask Others(const BlockMask& kept);

// Rows of the kept blocks, in order.
std::vector<int32_t> RowsOf(const BlockLayout& blocks, const BlockMask& kept);
int64_t CountRows(const BlockLayout& blocks, const BlockMask& kept);
// Of them those from each of `bounds` to the next: ascending, from 0 to the number of rows.
std::vector<int64_t> CountRows(const BlockLayout& blocks, const BlockMask& kept,
                               std::span<const int64_t> bounds);

}  // namespace lemo::train
