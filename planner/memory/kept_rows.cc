#include "planner/memory/kept_rows.h"

#include <algorithm>
#include <cmath>

namespace lemo::planner {
namespace {

// Documents of fewer blocks than this are kept whole.
constexpr int64_t kLeastBlocks = 4;

}  // namespace

KeptRows KeepRows(std::span<const int64_t> documents, const BlockOptions& options) {
  KeptRows kept;
  for (const int64_t length : documents) {
    const int64_t blocks = (length + options.block - 1) / options.block;
    int64_t rows = length, reserved = length;
    if (options.keep < 1 && blocks >= kLeastBlocks) {
      // The sum of a ratio's rounding errors must not add a block: 0.6 * 5 is 3.
      const auto wanted = std::clamp<int64_t>(
          static_cast<int64_t>(std::ceil(options.keep * static_cast<double>(blocks) - 1e-9)), 1,
          blocks);
      const int64_t mandatory = std::min(blocks, options.sink_blocks + options.local_blocks);
      const int64_t count = std::max(wanted, mandatory);
      reserved = std::min(length, count * options.block);
      // The last block may be a short one, which is kept where local blocks are.
      const int64_t missing = blocks * options.block - length;
      rows = options.local_blocks > 0 ? count * options.block - missing : reserved;
    }
    kept.rows += rows;
    kept.reserved += reserved;
    kept.longest = std::max(kept.longest, rows);
  }
  return kept;
}

}  // namespace lemo::planner
