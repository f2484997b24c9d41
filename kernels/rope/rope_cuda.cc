#include "kernels/rope/rope_cuda.cuh"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "kernels/cuda_bind.cuh"
#include "kernels/rope/rope_internal.h"

namespace lemo::kernels::cuda {
namespace {

at::Tensor Rope(const at::Tensor& x_any, const at::Tensor& cos_any, const at::Tensor& sin_any,
                bool inverse) {
  CheckRope(x_any, cos_any, sin_any);
  const OnDevice device(x_any);
  const at::Tensor x = x_any.contiguous();
  const at::Tensor cos = cos_any.contiguous();
  const at::Tensor sin = sin_any.contiguous();
  at::Tensor y = at::empty(x.sizes(), x.options());
  C10_CUDA_CHECK(LaunchRope(ElementOf(x), x.const_data_ptr(), cos.const_data_ptr(),
                            sin.const_data_ptr(), inverse, x.size(0), x.size(1), x.size(2) / 2,
                            y.mutable_data_ptr(), device.stream()));
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(lemo, CUDA, m) { m.impl("rope", Rope); }

}  // namespace lemo::kernels::cuda
