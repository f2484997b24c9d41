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

}  // namespace

TORCH_LIBRARY_IMPL(lemo, CUDA, m) { m.impl("cross_entropy_", CrossEntropy); }

}  // namespace lemo::kernels::cuda
