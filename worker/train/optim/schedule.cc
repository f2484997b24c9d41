#include "worker/train/optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace lemo::train {

double Schedule::At(int64_t step) const {
  if (step < warmup_steps) {
    return peak * static_cast<double>(step) / static_cast<double>(warmup_steps);
  }
  const int64_t span = std::max<int64_t>(1, total_steps - warmup_steps);
  const double progress =
      std::min(1.0, static_cast<double>(step - warmup_steps) / static_cast<double>(span));
  double share = 1.0;
  if (shape == Shape::kLinear) share = 1.0 - progress;
  if (shape == Shape::kCosine) share = 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  return peak * (min_ratio + (1.0 - min_ratio) * share);
}

std::optional<Schedule::Shape> ParseScheduleShape(const std::string& name) {
  if (name == "constant") return Schedule::Shape::kConstant;
  if (name == "linear") return Schedule::Shape::kLinear;
  if (name == "cosine") return Schedule::Shape::kCosine;
  return std::nullopt;
}

}  // namespace lemo::train
