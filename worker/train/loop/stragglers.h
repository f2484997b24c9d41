// Which rank holds the others up.
#pragma once

#include <deque>
#include <optional>
#include <vector>

namespace lemo::train {

struct Straggler {
  int rank = 0;
  double seconds = 0;  // mean of its own work in a step
  double median = 0;   // of all ranks' means; of an even number the lower one
};

// Looks at the last kSteps steps together, so that one slow step names nobody.
class StragglerWatch {
 public:
  static constexpr int kSteps = 8;
  static constexpr double kFactor = 1.5;  // of the median

  // Seconds of own work of every rank in one step. The slowest rank when it is one to be told: it
  // is beyond the bound, and was not when it, or anyone, was told last.
  std::optional<Straggler> Add(const std::vector<double>& busy_seconds);

 private:
  std::deque<std::vector<double>> steps_;
  int told_ = -1;
};

}  // namespace lemo::train
