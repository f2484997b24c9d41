#include "worker/train/loop/stragglers.h"

#include <algorithm>

namespace lemo::train {

std::optional<Straggler> StragglerWatch::Add(const std::vector<double>& busy_seconds) {
  steps_.push_back(busy_seconds);
  if (steps_.size() < kSteps) return std::nullopt;
  if (steps_.size() > kSteps) steps_.pop_front();
  std::vector<double> means(busy_seconds.size(), 0.0);
  for (const std::vector<double>& step : steps_) {
    for (size_t r = 0; r < means.size(); ++r) means[r] += step[r] / kSteps;
  }
  const auto slowest = std::max_element(means.begin(), means.end());
  const auto rank = static_cast<int>(slowest - means.begin());
  std::vector<double> sorted = means;
  std::sort(sorted.begin(), sorted.end());
  const double median = sorted[(sorted.size() - 1) / 2];
  if (*slowest < kFactor * median) {
    told_ = -1;
    return std::nullopt;
  }
  if (told_ == rank) return std::nullopt;
  told_ = rank;
  return Straggler{rank, *slowest, median};
}

}  // namespace lemo::train
