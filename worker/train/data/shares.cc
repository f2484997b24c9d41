#include "worker/train/data/shares.h"

#include <algorithm>
#include <numeric>

namespace lemo::train {

double SequenceCost(std::span<const int64_t> document_lengths, double attention_length) {
  double cost = 0;
  for (const int64_t length : document_lengths) {
    const auto rows = static_cast<double>(length);
    cost += rows + (attention_length > 0 ? rows * rows / attention_length : 0);
  }
  return cost;
}

std::vector<int> ShareOut(std::span<const double> costs, int shares) {
  std::vector<size_t> order(costs.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return costs[a] > costs[b]; });
  std::vector<double> loads(static_cast<size_t>(shares), 0.0);
  std::vector<int> share_of(costs.size());
  for (const size_t i : order) {
    const auto least = std::min_element(loads.begin(), loads.end());
    *least += costs[i];
    share_of[i] = static_cast<int>(least - loads.begin());
  }
  return share_of;
}

}  // namespace lemo::train
