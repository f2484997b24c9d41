#include <ATen/ATen.h>
#include <torch/library.h>

#include "kernels/block_pool/block_pool_cuda.cuh"
#include "kernels/block_pool/block_pool_internal.h"
#include "kernels/cuda_bind.cuh"

namespace lemo::kernels::cuda {
namespace {

at::Tensor BlockMeanMax(const at::Tensor& u_any, const at::Tensor& starts_any,
                        const std::optional<at::Tensor>& row_scale_any) {
  CheckBlockMeanMax(u_any, starts_any, row_scale_any);
  const OnDevice device(u_any);
  const at::Tensor u = u_any.contiguous();
  const at::Tensor starts = starts_any.contiguous();
  const at::Tensor row_scale = row_scale_any ? row_scale_any->contiguous() : at::Tensor();
  const int64_t blocks = starts.size(0) - 1;
  at::Tensor z = at::empty({blocks, 2 * u.size(1)}, u.options().dtype(WideType(u.scalar_type())));
  C10_CUDA_CHECK(LaunchBlockMeanMax(ElementOf(u), u.const_data_ptr(), u.size(0), u.size(1),
                                    IndexArrayOf(starts), blocks,
                                    row_scale.defined() ? row_scale.const_data_ptr() : nullptr,
                                    z.mutable_data_ptr(), device.stream()));
  return z;
}

at::Tensor BlockMeanMaxBackward(const at::Tensor& dz_any, const at::Tensor& u_any,
                                const at::Tensor& starts_any,
                                const std::optional<at::Tensor>& row_scale_any) {
  CheckBlockMeanMaxBackward(dz_any, u_any, starts_any, row_scale_any);
  const OnDevice device(u_any);
  const at::Tensor dz = dz_any.contiguous();
  const at::Tensor u = u_any.contiguous();
  const at::Tensor starts = starts_any.contiguous();
  const at::Tensor row_scale = row_scale_any ? row_scale_any->contiguous() : at::Tensor();
  at::Tensor du = at::empty(u.sizes(), u.options());
  C10_CUDA_CHECK(
      LaunchBlockMeanMaxBackward(ElementOf(u), dz.const_data_ptr(), u.const_data_ptr(), u.size(0),
                                 u.size(1), IndexArrayOf(starts), starts.size(0) - 1,
                                 row_scale.defined() ? row_scale.const_data_ptr() : nullptr,
                                 du.mutable_data_ptr(), device.stream()));
  return du;
}

}  // namespace

TORCH_LIBRARY_IMPL(lemo, CUDA, m) {
  m.impl("block_mean_max", BlockMeanMax);
  m.impl("block_mean_max_backward", BlockMeanMaxBackward);
}

}  // namespace lemo::kernels::cuda
