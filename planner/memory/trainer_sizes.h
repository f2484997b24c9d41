// Sizes that the trainer chooses by itself, and what no term of a forecast has.
#pragma once

#include <algorithm>
#include <cstdint>

namespace lemo::planner {

inline constexpr int64_t kMasterBytes = 4;  // fp32, as gradients and moments
inline constexpr int64_t kTokenBytes = 8;   // int64 on the device; labels and positions likewise

// Rows of a tile of the MLP, on a CPU; `wanted` 0: as the trainer chooses.
inline int64_t TileRows(int64_t wanted) {
  constexpr int64_t kCpuTileRows = 1024;
  return wanted > 0 ? wanted : kCpuTileRows;
}

// Rows of a segment of the loss over so many labelled rows, likewise.
inline int64_t SegmentRows(int64_t wanted, int64_t vocabulary, int64_t labelled) {
  constexpr int64_t kCpuSegmentRows = 1024, kSegmentBytes = int64_t{512} << 20;
  const int64_t rows =
      wanted > 0 ? wanted
                 : std::clamp<int64_t>(kSegmentBytes / (6 * vocabulary), 1, kCpuSegmentRows);
  return std::min(rows, labelled);
}

// What no term has: scalars, masks of blocks, partial sums of norms' weights.
inline constexpr int64_t kSmallTensors = int64_t{64} << 10;

// What a forecast's high end is above the expected bytes, by `transient` of these. oneDNN, which
// multiplies narrow types on a CPU, has scratch of its own by shapes of its own choice, and widens
// some gradients on the way: up to 1.1 MiB was seen, and 1 % of the temporaries.
inline int64_t MarginBytes(int64_t element_bytes, int64_t transient) {
  constexpr int64_t kNarrowScratch = int64_t{1} << 20, kNarrowShare = 50;
  return kSmallTensors +
         (element_bytes < kMasterBytes ? kNarrowScratch + transient / kNarrowShare : 0);
}

}  // namespace lemo::planner
