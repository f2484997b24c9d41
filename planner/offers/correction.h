// What finished runs say of the times that were foretold of them.
//
// Rates are measured in a minute, operator by operator, and alone. What a run meets besides
// (another machine than the one that was measured, caches, how its ranks share memory) is off by
// a factor that is much the same for runs of one kind. So the correction is one factor: the
// geometric mean of measured over foretold, in which twice too slow and twice too fast cancel. It
// assumes that the runs stood on the rates that are corrected; the caller sees to that.
#pragma once

#include <cstdint>
#include <span>

namespace lemo::planner {

struct TimeCorrection {
  double ratio = 1;
  int64_t runs = 0;  // that there were, those used; below kLeastRuns the ratio is 1
};

// One run may have been beside anything.
inline constexpr int64_t kLeastRuns = 2;
// Older runs count no more.
inline constexpr int64_t kMostRuns = 16;
// A factor beyond this (or below its inverse) says that something else is wrong.
inline constexpr double kMostRatio = 4;

// `ratios` of measured over foretold, newest first; what is not above 0 or not finite is passed
// over.
TimeCorrection CorrectionOf(std::span<const double> ratios);

}  // namespace lemo::planner
