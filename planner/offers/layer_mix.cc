#include "planner/offers/layer_mix.h"

#include <algorithm>
#include <numeric>

namespace lemo::planner {
namespace {

// Choices on the lower convex hull of seconds over bytes, from the fastest (the smallest of those)
// to the smallest.
std::vector<int64_t> Hull(const std::vector<StorageChoice>& choices) {
  std::vector<int64_t> order(choices.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return choices[a].seconds != choices[b].seconds ? choices[a].seconds < choices[b].seconds
                                                    : choices[a].bytes < choices[b].bytes;
  });
  std::vector<int64_t> hull;
  const auto slope = [&](int64_t a, int64_t b) {
    return (choices[b].seconds - choices[a].seconds) /
           static_cast<double>(choices[a].bytes - choices[b].bytes);
  };
  for (const int64_t choice : order) {
    if (!hull.empty() && choices[choice].bytes >= choices[hull.back()].bytes) continue;
    while (hull.size() > 1 &&
           slope(hull[hull.size() - 2], hull.back()) >= slope(hull.back(), choice)) {
      hull.pop_back();
    }
    hull.push_back(choice);
  }
  return hull;
}

}  // namespace

std::vector<int64_t> LayerMix::After(size_t count) const {
  std::vector<int64_t> choices = start;
  for (size_t i = 0; i < count; ++i) choices[steps[i].layer] = steps[i].to;
  return choices;
}

LayerMix MixOf(std::span<const std::vector<StorageChoice>> layers) {
  LayerMix mix;
  std::vector<double> losses;  // of every step, seconds a byte
  for (size_t i = 0; i < layers.size(); ++i) {
    const std::vector<StorageChoice>& choices = layers[i];
    const std::vector<int64_t> hull = Hull(choices);
    mix.start.push_back(hull.front());
    for (size_t k = 1; k < hull.size(); ++k) {
      mix.steps.push_back({static_cast<int64_t>(i), hull[k - 1], hull[k]});
      losses.push_back((choices[hull[k]].seconds - choices[hull[k - 1]].seconds) /
                       static_cast<double>(choices[hull[k - 1]].bytes - choices[hull[k]].bytes));
    }
  }
  // A layer's steps have rising losses, so that sorting keeps their order.
  std::vector<size_t> order(mix.steps.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&losses](size_t a, size_t b) { return losses[a] < losses[b]; });
  std::vector<MixStep> sorted;
  for (const size_t i : order) sorted.push_back(mix.steps[i]);
  mix.steps = std::move(sorted);
  return mix;
}

}  // namespace lemo::planner
