// Which layers should store less, in which order, when a run must become smaller.
//
// A layer can be stored in several ways, each with bytes and with the seconds it costs. Under a
// budget the least total time is a knapsack problem with one choice a layer. Its relaxation is
// solved by a greedy walk over the lower convex hull of each layer: always the step with the fewest
// seconds lost a byte saved. Since layers are equal in shape and there are many, every point
// of the walk is optimal for its own bytes, and between two points lies one layer's step: an exact
// solution for a budget between them would gain less than the forecast's own error.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lemo::planner {

struct StorageChoice {
  int64_t bytes = 0;   // kept on the device
  double seconds = 0;  // of a step, beyond the fastest choice
};

struct MixStep {
  int64_t layer = 0;
  int64_t from = 0, to = 0;  // choices of that layer
};

// The walk from every layer's fastest choice to its smallest. `layers` has the choices of each;
// ties in seconds go to the smaller, ties between layers to the lower one.
struct LayerMix {
  std::vector<int64_t> start;  // choice of every layer at first
  std::vector<MixStep> steps;

  // The choice of every layer after `count` steps.
  std::vector<int64_t> After(size_t count) const;
};

LayerMix MixOf(std::span<const std::vector<StorageChoice>> layers);

}  // namespace lemo::planner
