// Random documents and choices, for the tests of what is kept.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "worker/train/tokens/blocks.h"

namespace lemo::train::testing {

inline int64_t Draw(std::mt19937_64& random, int64_t first, int64_t last) {
  return first + static_cast<int64_t>(random() % static_cast<uint64_t>(last - first + 1));
}

// First rows of up to five documents, and the number of rows.
inline std::vector<int32_t> RandomDocuments(std::mt19937_64& random, int64_t longest) {
  std::vector<int32_t> starts = {0};
  for (int64_t count = Draw(random, 1, 5); count > 0; --count) {
    starts.push_back(starts.back() + static_cast<int32_t>(Draw(random, 1, longest)));
  }
  return starts;
}

inline std::vector<uint8_t> RandomBits(std::mt19937_64& random, int64_t count, int64_t percent) {
  std::vector<uint8_t> bits(count);
  for (uint8_t& bit : bits) bit = Draw(random, 1, 100) <= percent;
  return bits;
}

}  // namespace lemo::train::testing
