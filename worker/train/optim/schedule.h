// Learning-rate schedules, as in transformers' get_{constant,linear,cosine}_schedule_with_warmup.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace lemo::train {

struct Schedule {
  enum class Shape { kConstant, kLinear, kCosine };
  Shape shape = Shape::kCosine;
  double peak = 1e-4;
  int64_t warmup_steps = 0;
  int64_t total_steps = 1;
  double min_ratio = 0.0;  // of the peak; where linear and cosine end

  // The rate of update `step`, from 0. Rises linearly from 0 over the warm-up (update 0 of a
  // warm-up has rate 0, as in transformers), then follows the shape to peak * min_ratio at
  // `total_steps`.
  double At(int64_t step) const;
};

// `constant`, `linear`, `cosine`; nullopt for anything else.
std::optional<Schedule::Shape> ParseScheduleShape(const std::string& name);

}  // namespace lemo::train
