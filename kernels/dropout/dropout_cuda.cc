#include "kernels/dropout/dropout_cuda.cuh"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "kernels/cuda_bind.cuh"
#include "kernels/dropout/dropout_internal.h"
#include "kernels/dropout/dropout_mask.h"

namespace lemo::kernels::cuda {
namespace {

at::Tensor Dropout(const at::Tensor& x_any, double p, int64_t seed, int64_t stream,
                   const at::Tensor& row_ids_any, int64_t first_column) {
  CheckDropout(x_any, p, row_ids_any);
  const OnDevice device(x_any);
  const at::Tensor x = x_any.contiguous();
  const at::Tensor row_ids = row_ids_any.contiguous();
  at::Tensor y = at::empty(x.sizes(), x.options());
  C10_CUDA_CHECK(LaunchDropout(ElementOf(x), x.const_data_ptr(), DropoutThreshold(p),
                               1.0 / (1.0 - p), seed, stream, IndexArrayOf(row_ids), first_column,
                               x.size(0), x.size(1), y.mutable_data_ptr(), device.stream()));
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(lemo, CUDA, m) { m.impl("dropout", Dropout); }

}  // namespace lemo::kernels::cuda
