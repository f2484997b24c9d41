#include "worker/train/data/positions.h"

#include <algorithm>

#include "worker/train/data/random.h"

namespace lemo::train {

void AppendPositions(const PositionSkip& skip, uint64_t key, int64_t length,
                     std::vector<int32_t>* positions) {
  uint64_t drawn = 0;
  const auto draw_below = [&](int64_t size) {
    return static_cast<int64_t>(
        DrawBelow(static_cast<uint64_t>(size), MixBits(key ^ MixBits(++drawn))));
  };
  const int64_t room = skip.target - length;
  std::vector<int64_t> starts;  // of the parts behind the first
  if (room > 0) {
    for (int64_t part = 1; part < skip.chunks; ++part) starts.push_back(1 + draw_below(length - 1));
    std::sort(starts.begin(), starts.end());
  }
  int64_t skipped = 0;
  auto next = starts.begin();
  for (int64_t i = 0; i < length; ++i) {
    for (; next != starts.end() && *next == i; ++next) skipped += draw_below(room - skipped + 1);
    positions->push_back(static_cast<int32_t>(i + skipped));
  }
}

}  // namespace lemo::train
