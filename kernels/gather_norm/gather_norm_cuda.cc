#include <ATen/ATen.h>
#include <torch/library.h>

#include "kernels/cuda_bind.cuh"
#include "kernels/gather_norm/gather_norm_cuda.cuh"
#include "kernels/gather_norm/gather_norm_internal.h"

namespace lemo::kernels::cuda {
namespace {

std::tuple<at::Tensor, at::Tensor> GatherRmsNorm(const at::Tensor& src_any,
                                                 const std::optional<at::Tensor>& idx_any,
                                                 const at::Tensor& weight_any, double eps,
                                                 const at::Tensor& x) {
  CheckGatherRmsNorm(src_any, idx_any, weight_any, x);
  const OnDevice device(src_any);
  const at::Tensor src = src_any.contiguous();
  const at::Tensor weight = weight_any.contiguous();
  const at::Tensor idx = idx_any ? idx_any->contiguous() : at::Tensor();
  at::Tensor y = at::empty(x.sizes(), x.options());
  at::Tensor rstd = at::empty({x.size(0)}, x.options().dtype(WideType(x.scalar_type())));
  C10_CUDA_CHECK(LaunchGatherRmsNorm(ElementOf(src), src.const_data_ptr(), src.size(0),
                                     idx.defined() ? IndexArrayOf(idx) : IndexArray{}, x.size(0),
                                     x.size(1), weight.const_data_ptr(), eps, x.mutable_data_ptr(),
                                     y.mutable_data_ptr(), rstd.mutable_data_ptr(),
                                     device.stream()));
  return {y, rstd};
}

}  // namespace

TORCH_LIBRARY_IMPL(lemo, CUDA, m) { m.impl("gather_rms_norm", GatherRmsNorm); }

}  // namespace lemo::kernels::cuda
