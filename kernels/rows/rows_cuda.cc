#include "kernels/rows/rows_cuda.cuh"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "kernels/cuda_bind.cuh"
#include "kernels/rows/rows_internal.h"

namespace lemo::kernels::cuda {
namespace {

at::Tensor GatherRows(const at::Tensor& src_any, const std::optional<at::Tensor>& idx_any) {
  CheckGatherRows(src_any, idx_any);
  const OnDevice device(src_any);
  const at::Tensor src = src_any.contiguous();
  const at::Tensor idx = idx_any ? idx_any->contiguous() : at::Tensor();
  const int64_t count = idx.defined() ? idx.size(0) : src.size(0);
  at::Tensor out = at::empty({count, src.size(1)}, src.options());
  C10_CUDA_CHECK(LaunchGatherRows(src.const_data_ptr(), src.size(0),
                                  idx.defined() ? IndexArrayOf(idx) : IndexArray{}, count,
                                  src.size(1) * static_cast<int64_t>(src.element_size()),
                                  out.mutable_data_ptr(), device.stream()));
  return out;
}

void ScatterAddRows(const at::Tensor& dst, const std::optional<at::Tensor>& idx_any,
                    const at::Tensor& delta_any) {
  CheckScatterAddRows(dst, idx_any, delta_any);
  const OnDevice device(dst);
  const at::Tensor delta = delta_any.contiguous();
  const at::Tensor idx = idx_any ? idx_any->contiguous() : at::Tensor();
  C10_CUDA_CHECK(LaunchScatterAddRows(ElementOf(dst), dst.mutable_data_ptr(), dst.size(0),
                                      idx.defined() ? IndexArrayOf(idx) : IndexArray{},
                                      delta.size(0), dst.size(1), delta.const_data_ptr(),
                                      device.stream()));
}

}  // namespace

TORCH_LIBRARY_IMPL(lemo, CUDA, m) {
  m.impl("gather_rows", GatherRows);
  m.impl("scatter_add_rows_", ScatterAddRows);
}

}  // namespace lemo::kernels::cuda
