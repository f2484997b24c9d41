#include "worker/train/model/family/run_length.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/violations.h"

namespace lemo::train {
namespace {

int64_t Scaled(int64_t length, double factor) {
  // Positions are 32-bit everywhere.
  constexpr double kMax = std::numeric_limits<int32_t>::max();
  return static_cast<int64_t>(std::min(kMax, std::floor(static_cast<double>(length) * factor)));
}

}  // namespace

int64_t MaxPositions(const DecoderConfig& config) {
  switch (config.rope.scaling) {
    case RopeConfig::Scaling::kLinear:
    case RopeConfig::Scaling::kDynamic:
      return Scaled(config.max_positions, config.rope.factor);
    case RopeConfig::Scaling::kYarn:
      return std::max(config.max_positions,
                      Scaled(config.rope.original_max_positions, config.rope.factor));
    case RopeConfig::Scaling::kNone:
    case RopeConfig::Scaling::kLlama3:
      break;
  }
  return config.max_positions;
}

absl::Status CheckRunLength(const DecoderConfig& config, int64_t max_length) {
  Violations violations;
  if (max_length < 1) {
    violations.Add("max_length", absl::StrCat("must be at least 1, found ", max_length));
  }
  if (const int64_t limit = MaxPositions(config); max_length > limit) {
    violations.Add("max_length",
                   absl::StrCat(max_length, " is above the model's limit of ", limit, " positions",
                                config.positions == DecoderConfig::Positions::kTable
                                    ? ": its learned table has no more rows"
                                    : ""));
  }
  for (size_t layer = 0; layer < config.sliding_window.size(); ++layer) {
    const int64_t window = config.sliding_window[layer];
    if (window == 0 || max_length <= window) continue;
    violations.Add("max_length",
                   absl::StrCat(max_length, " is longer than the sliding window of ", window,
                                " tokens (first in layer ", layer,
                                "), which is supported only for runs that it covers"));
    break;
  }
  return violations.ToStatus();
}

}  // namespace lemo::train
