#include "kernels/cross_entropy/cross_entropy_cuda.cuh"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "kernels/cross_entropy/cross_entropy_internal.h"
#include "kernels/cuda_bind.cuh"

namespace lemo::kernels::cuda {
namespace {

std::tuple<at::Tensor, at::Tensor> CrossEntropy(const at::Tensor& logits,
                                                const at::Tensor& labels_any, double scale,
                                                bool want_gradient) {
  CheckCrossEntropy(logits, labels_any);
  const OnDevice device(logits);
  const at::Tensor labels = labels_any.contiguous();
  const int64_t rows = logits.size(0);
  at::Tensor loss = at::empty({rows}, logits.options().dtype(WideType(logits.scalar_type())));
  at::Tensor correct = at::empty({rows}, logits.options().dtype(at::kBool));
  C10_CUDA_CHECK(LaunchCrossEntropy(ElementOf(logits), logits.mutable_data_ptr(),
                                    IndexArrayOf(labels), scale, want_gradient, rows,
                                    logits.size(1), loss.mutable_data_ptr(),
                                    correct.mutable_data_ptr<bool>(), device.stream()));
  return {loss, correct};
}

at::Tensor Statistics(const at::Tensor& logits, const at::Tensor& labels_any) {
  CheckCrossEntropyPart(logits, labels_any);
  const OnDevice device(logits);
  const at::Tensor labels = labels_any.contiguous();
  at::Tensor result = at::empty({4, logits.size(0)}, logits.options().dtype(at::kDouble));
  C10_CUDA_CHECK(LaunchCrossEntropyStatistics(ElementOf(logits), logits.const_data_ptr(),
                                              IndexArrayOf(labels), logits.size(0), logits.size(1),
                                              result.mutable_data_ptr<double>(), device.stream()));
  return result;
}

void Gradient(const at::Tensor& logits, const at::Tensor& labels_any, const at::Tensor& largest_any,
              const at::Tensor& total_any, double scale) {
  CheckCrossEntropyPart(logits, labels_any);
  CheckRowValues("largest", largest_any, logits);
  CheckRowValues("total", total_any, logits);
  const OnDevice device(logits);
  const at::Tensor labels = labels_any.contiguous();
  const at::Tensor largest = largest_any.contiguous(), total = total_any.contiguous();
  C10_CUDA_CHECK(LaunchCrossEntropyGradient(ElementOf(logits), logits.mutable_data_ptr(),
                                            IndexArrayOf(labels), largest.const_data_ptr<double>(),
                                            total.const_data_ptr<double>(), scale, logits.size(0),
                                            logits.size(1), device.stream()));
}

}  // namespace

TORCH_LIBRARY_IMPL(lemo, CUDA, m) {
  m.impl("cross_entropy_", CrossEntropy);
  m.impl("cross_entropy_statistics", Statistics);
  m.impl("cross_entropy_gradient_", Gradient);
}

}  // namespace lemo::kernels::cuda
