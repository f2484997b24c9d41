// The training curve in bounded memory: it goes into every checkpoint and into a page.
#pragma once

#include <cstdint>
#include <vector>

#include "lemo/v1/run_event.pb.h"

namespace lemo::train {

// Steps in order, as at most kMaxPoints points. A point stands for `window()` steps (the last one
// for what is left of them): 1 at first, doubled by merging neighbours whenever there are too many.
//
// Of a point of several steps: `loss` is the mean over their labelled tokens, `grad_norm` the
// largest (so that no spike hides), `tokens`, `labelled_tokens` and `seconds` are sums,
// `tokens_per_second` is their ratio, `sparsity` is as MergeSparsity says, and the rest is that of
// its last step. Of every point `sparsity` is the mean of the layers.
class TrainingCurve {
 public:
  static constexpr size_t kMaxPoints = 1024;

  void Add(const lemo::v1::StepEvent& added);

  const std::vector<lemo::v1::StepEvent>& points() const { return points_; }
  int64_t window() const { return window_; }

  // The same curve from what the accessors above gave.
  static TrainingCurve FromPoints(std::vector<lemo::v1::StepEvent> points, int64_t window);

 private:
  std::vector<lemo::v1::StepEvent> points_;
  int64_t window_ = 1;
};

}  // namespace lemo::train
