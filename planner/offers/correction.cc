#include "planner/offers/correction.h"

#include <algorithm>
#include <cmath>

namespace lemo::planner {

TimeCorrection CorrectionOf(std::span<const double> ratios) {
  TimeCorrection correction;
  double logarithms = 0;
  for (const double ratio : ratios) {
    if (!(ratio > 0) || !std::isfinite(ratio)) continue;
    logarithms += std::log(ratio);
    if (++correction.runs == kMostRuns) break;
  }
  if (correction.runs >= kLeastRuns) {
    const double mean = std::exp(logarithms / static_cast<double>(correction.runs));
    correction.ratio = std::clamp(mean, 1 / kMostRatio, kMostRatio);
  }
  return correction;
}

}  // namespace lemo::planner
