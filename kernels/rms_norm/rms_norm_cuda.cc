#include "kernels/rms_norm/rms_norm_cuda.cuh"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "kernels/cuda_bind.cuh"
#include "kernels/rms_norm/rms_norm_internal.h"

namespace lemo::kernels::cuda {
namespace {

std::tuple<at::Tensor, at::Tensor> RmsNorm(const at::Tensor& x_any, const at::Tensor& weight_any,
                                           double eps) {
  CheckRmsNorm(x_any, weight_any);
  const OnDevice device(x_any);
  const at::Tensor x = x_any.contiguous();
  const at::Tensor weight = weight_any.contiguous();
  at::Tensor y = at::empty(x.sizes(), x.options());
  at::Tensor rstd =
      at::empty(x.sizes().slice(0, x.dim() - 1), x.options().dtype(WideType(x.scalar_type())));
  C10_CUDA_CHECK(LaunchRmsNorm(ElementOf(x), x.const_data_ptr(), weight.const_data_ptr(), eps,
                               rstd.numel(), x.size(-1), y.mutable_data_ptr(),
                               rstd.mutable_data_ptr(), device.stream()));
  return {y, rstd};
}

std::tuple<at::Tensor, at::Tensor> RmsNormBackward(const at::Tensor& dy_any,
                                                   const at::Tensor& x_any,
                                                   const at::Tensor& rstd_any,
                                                   const at::Tensor& weight_any,
                                                   bool need_weight_grad) {
  CheckRmsNormBackward(dy_any, x_any, rstd_any, weight_any);
  const OnDevice device(x_any);
  const at::Tensor dy = dy_any.contiguous();
  const at::Tensor x = x_any.contiguous();
  const at::Tensor rstd = rstd_any.contiguous();
  const at::Tensor weight = weight_any.contiguous();
  const int64_t rows = rstd.numel();
  const int64_t width = x.size(-1);
  at::Tensor dx = at::empty(x.sizes(), x.options());
  C10_CUDA_CHECK(LaunchRmsNormBackward(ElementOf(x), dy.const_data_ptr(), x.const_data_ptr(),
                                       rstd.const_data_ptr(), weight.const_data_ptr(), rows, width,
                                       dx.mutable_data_ptr(), device.stream()));
  at::Tensor dweight;
  if (need_weight_grad) {
    dweight = at::zeros({width}, weight.options());
    at::Tensor partials = at::empty({RmsNormWeightChunks(rows), width}, rstd.options());
    C10_CUDA_CHECK(LaunchRmsNormWeightGrad(
        ElementOf(x), dy.const_data_ptr(), x.const_data_ptr(), rstd.const_data_ptr(), rows, width,
        partials.mutable_data_ptr(), dweight.mutable_data_ptr(), device.stream()));
  }
  return {dx, dweight};
}

}  // namespace

TORCH_LIBRARY_IMPL(lemo, CUDA, m) {
  m.impl("rms_norm", RmsNorm);
  m.impl("rms_norm_backward", RmsNormBackward);
}

}  // namespace lemo::kernels::cuda
