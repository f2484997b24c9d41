// The versions of cross_entropy_ behind the dispatcher, and the checks they share. Not for callers.
#pragma once

#include <tuple>

#include "kernels/checks.h"
#include "kernels/cross_entropy/cross_entropy.h"

namespace lemo::kernels {

namespace reference {
std::tuple<at::Tensor, at::Tensor> CrossEntropy(const at::Tensor& logits, const at::Tensor& labels,
                                                double scale, bool want_gradient);
at::Tensor Statistics(const at::Tensor& logits, const at::Tensor& labels);
void Gradient(const at::Tensor& logits, const at::Tensor& labels, const at::Tensor& largest,
              const at::Tensor& total, double scale);
}  // namespace reference

namespace cpu {
std::tuple<at::Tensor, at::Tensor> CrossEntropy(const at::Tensor& logits, const at::Tensor& labels,
                                                double scale, bool want_gradient);
at::Tensor Statistics(const at::Tensor& logits, const at::Tensor& labels);
void Gradient(const at::Tensor& logits, const at::Tensor& labels, const at::Tensor& largest,
              const at::Tensor& total, double scale);
}  // namespace cpu

inline void CheckCrossEntropy(const at::Tensor& logits, const at::Tensor& labels) {
  CheckFloatType("cross_entropy_", "logits", logits);
  TORCH_CHECK_VALUE(logits.dim() == 2 && logits.size(1) > 0 && logits.is_contiguous(),
                    "cross_entropy_: logits must be [c, V], V > 0, contiguous; the shape is ",
                    logits.sizes(), ", strides ", logits.strides());
  CheckIndexList("cross_entropy_", "labels", labels, logits.size(0), logits.device());
}

inline void CheckCrossEntropyPart(const at::Tensor& logits, const at::Tensor& labels) {
  CheckFloatType("cross_entropy", "logits", logits);
  TORCH_CHECK_VALUE(logits.dim() == 2 && logits.is_contiguous(),
                    "cross_entropy: logits must be [c, V], contiguous; the shape is ",
                    logits.sizes(), ", strides ", logits.strides());
  CheckIndexList("cross_entropy", "labels", labels, logits.size(0), logits.device());
}

inline void CheckRowValues(const char* name, const at::Tensor& values, const at::Tensor& logits) {
  TORCH_CHECK_VALUE(values.scalar_type() == at::kDouble && values.dim() == 1 &&
                        values.size(0) == logits.size(0) && values.device() == logits.device(),
                    "cross_entropy: ", name, " must be Double [", logits.size(0), "] on ",
                    logits.device(), "; it is ", values.scalar_type(), " ", values.sizes(), " on ",
                    values.device());
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
