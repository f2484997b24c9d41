#include "worker/train/objective/shared_cross_entropy.h"

#include <ATen/ATen.h>

#include <limits>
#include <vector>

namespace lemo::train {

std::tuple<at::Tensor, at::Tensor> SharedCrossEntropyInPlace(
    const Decoder& decoder, const at::Tensor& logits, const at::Tensor& labels,
    const kernels::CrossEntropyOptions& options) {
  const at::Tensor local_labels = LocalWords(decoder, labels);
  const at::Tensor own = kernels::CrossEntropyStatistics(logits, local_labels);
  own.select(0, 3).add_(decoder.split->vocabulary_first());
  const int ranks = decoder.tensor->size();
  at::Tensor all = at::empty({ranks, 4, logits.size(0)}, own.options());
  decoder.tensor->AllGather(own, all, std::vector<int64_t>(ranks, own.numel())).Wait();

  // [ranks, c] each. Every rank computes the same from the same numbers.
  const at::Tensor maxima = all.select(1, 0), sums = all.select(1, 1), words = all.select(1, 3);
  const at::Tensor largest = maxima.amax(0);
  const at::Tensor has_largest = maxima.eq(largest);
  // Not through exp(0) where the maxima agree: both may be infinite.
  const at::Tensor total = at::where(has_largest, sums, sums * (maxima - largest).exp()).sum(0);
  const auto type = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor loss = (total.log() + (largest - all.select(1, 2).sum(0))).to(type);
  const at::Tensor best =
      at::where(has_largest, words, std::numeric_limits<double>::infinity()).amin(0);
  const at::Tensor correct = best.eq(labels).logical_and(loss.isnan().logical_not());
  if (options.want_gradient) {
    kernels::CrossEntropyGradientInPlace(logits, local_labels, largest, total, options.scale);
  }
  return {loss, correct};
}

}  // namespace lemo::train
