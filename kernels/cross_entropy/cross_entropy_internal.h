// The versions of cross_entropy_ behind the dispatcher, and the checks they share. Not for callers.
#pragma once

#include <tuple>

#include "kernels/checks.h"
#include "kernels/cross_entropy/cross_entropy.h"

namespace lemo::kernels {

namespace reference {
std::tuple<at::Tensor, at::Tensor> CrossEntropy(const at::Tensor& logits, const at::Tensor& labels,
                                                double scale, bool want_gradient);
}  // namespace reference

namespace cpu {
std::tuple<at::Tensor, at::Tensor> CrossEntropy(const at::Tensor& logits, const at::Tensor& labels,
                                                double scale, bool want_gradient);
}  // namespace cpu

inline void CheckCrossEntropy(const at::Tensor& logits, const at::Tensor& labels) {
  CheckFloatType("cross_entropy_", "logits", logits);
  TORCH_CHECK_VALUE(logits.dim() == 2 && logits.size(1) > 0 && logits.is_contiguous(),
                    "cross_entropy_: logits must be [c, V], V > 0, contiguous; the shape is ",
                    logits.sizes(), ", strides ", logits.strides());
  CheckIndexList("cross_entropy_", "labels", labels, logits.size(0), logits.device());
}

// Throws unless every label is kIgnoreLabel or in [0, vocabulary).
template <typename Index>
void CheckLabels(const Index* labels, int64_t count, int64_t vocabulary) {
  for (int64_t r = 0; r < count; ++r) {
    TORCH_CHECK_INDEX(labels[r] == kIgnoreLabel || (labels[r] >= 0 && labels[r] < vocabulary),
                      "cross_entropy_: labels[", r, "] is ", labels[r], ", neither ", kIgnoreLabel,
                      " nor in [0, ", vocabulary, ")");
  }
}

}  // namespace lemo::kernels
