#include "worker/train/report/curve.h"

#include <cmath>
#include <utility>

#include "worker/train/report/sparsity.h"

namespace lemo::train {
namespace {

using lemo::v1::StepEvent;

// Merges `next` into `point`, which comes before it.
void Merge(const StepEvent& next, StepEvent* point) {
  const double a = static_cast<double>(point->labelled_tokens());
  const double b = static_cast<double>(next.labelled_tokens());
  StepEvent merged = next;
  if (a + b > 0) merged.set_loss((point->loss() * a + next.loss() * b) / (a + b));
  // NaN is the largest of all: it must not get lost in a comparison.
  if (!std::isnan(next.grad_norm()) && !(point->grad_norm() <= next.grad_norm())) {
    merged.set_grad_norm(point->grad_norm());
  }
  MergeSparsity(*point, next, &merged);
  merged.set_tokens(point->tokens() + next.tokens());
  merged.set_labelled_tokens(point->labelled_tokens() + next.labelled_tokens());
  merged.set_seconds(point->seconds() + next.seconds());
  merged.set_tokens_per_second(
      merged.seconds() > 0 ? static_cast<double>(merged.tokens()) / merged.seconds() : 0);
  *point = std::move(merged);
}

}  // namespace

void TrainingCurve::Add(const StepEvent& added) {
  StepEvent step = added;
  if (step.has_sparsity()) *step.mutable_sparsity() = MeanOfLayers(added.sparsity());
  const size_t size = points_.size();
  const int64_t before_last = size > 1 ? points_[size - 2].step() : 0;
  const bool last_is_full = size == 0 || points_.back().step() - before_last >= window_;
  if (!last_is_full) return Merge(step, &points_.back());
  if (size == kMaxPoints) {
    for (size_t i = 0; i < size / 2; ++i) {
      points_[i] = std::move(points_[2 * i]);
      // Point 2i + 1 is still where it was: i <= 2i.
      Merge(points_[2 * i + 1], &points_[i]);
    }
    points_.resize(size / 2);
    window_ *= 2;
  }
  points_.push_back(std::move(step));
}

TrainingCurve TrainingCurve::FromPoints(std::vector<StepEvent> points, int64_t window) {
  TrainingCurve curve;
  curve.points_ = std::move(points);
  curve.window_ = window;
  return curve;
}

}  // namespace lemo::train
