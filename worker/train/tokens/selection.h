// From scores of blocks to the blocks that are kept (lemo-spec section 6).
//
// Pure: numbers in, a mask out, on the host. A choice is of some tens to thousands of blocks, so
// its time is nothing beside the scores'; and the mask must be on the host anyway, where the
// segments of attention are made from it.
#pragma once

#include <cstdint>
#include <span>

#include "worker/train/tokens/blocks.h"

namespace lemo::train {

struct SelectOptions {
  // Share of a document's blocks; ceil(keep * blocks) are kept, mandatory ones included. 1 keeps
  // all.
  double keep = 1;
  // Keep the blocks that score at least `threshold` instead, but at least a tenth of a document's.
  bool use_threshold = false;
  double threshold = 0;
  int64_t sink_blocks = 1;   // first blocks of a document, always kept
  int64_t local_blocks = 1;  // last blocks of a document, always kept
  // Neighbours that are kept or dropped together, counted from the document's start. Their score is
  // the mean of the blocks'.
  int64_t chunk_blocks = 1;
};

// Documents of fewer blocks than this are kept whole.
inline constexpr int64_t kLeastBlocks = 4;

// Blocks that hold a labelled row, in documents where they are under a quarter of the blocks:
// keep_labels' part of the mandatory set. `labelled` has one entry a row.
BlockMask LabelBlocks(const BlockLayout& blocks, std::span<const uint8_t> labelled);

// Blocks that SelectBlocks keeps of each document at most, whatever the scores; the sum of their
// rows bounds the rows. With use_threshold that is all of them.
int64_t MostRows(const BlockLayout& blocks, const BlockMask& always, const SelectOptions& options);
// The same at least. With use_threshold that is the mandatory ones and a tenth.
int64_t LeastRows(const BlockLayout& blocks, const BlockMask& always, const SelectOptions& options);

struct BlockChoice {
  BlockMask kept;
  int64_t bad_blocks = 0;  // whose score is not finite
};

// Of every document the mandatory blocks (`always`, sinks, local ones) and of the rest the best,
// ties to the lower index; a score that is not finite counts as the best there is, so that a fault
// is computed and seen rather than skipped. `scores` and `always` have one entry a block; empty
// `always` is none. Chunks are taken whole while they fit, the last one in part, so that the count
// holds. `whole` has the blocks of every document before any left, of which shares are taken; empty
// where none did.
BlockChoice SelectBlocks(std::span<const float> scores, const BlockLayout& blocks,
                         const BlockMask& always, const SelectOptions& options,
                         std::span<const int64_t> whole = {});

// How far a choice agrees with true scores (lemo-spec section 17.21).
struct ChoiceRecall {
  int64_t wanted = 0;  // blocks that `truth` would keep, but for those that are kept anyway
  int64_t kept = 0;    // of these
};

// Of what `kept` has of every document, beside what the same number of blocks by `truth` would be:
// as SelectBlocks makes it, mandatory blocks first. They, and documents that are kept whole, are
// the same whatever ranks the rest, and count on neither side. Other arguments as SelectBlocks'.
ChoiceRecall RecallOf(const BlockMask& kept, std::span<const float> truth,
                      const BlockLayout& blocks, const BlockMask& always,
                      const SelectOptions& options, std::span<const int64_t> whole = {});

}  // namespace lemo::train
