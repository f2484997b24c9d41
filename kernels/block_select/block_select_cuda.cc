#include <ATen/ATen.h>
#include <torch/library.h>

#include "kernels/block_select/block_select_cuda.cuh"
#include "kernels/block_select/block_select_internal.h"
#include "kernels/cuda_bind.cuh"

namespace lemo::kernels::cuda {
namespace {

at::Tensor SelectTopBlocks(const at::Tensor& scores_any, const at::Tensor& mandatory_any,
                           const at::Tensor& documents_any, const at::Tensor& counts_any) {
  CheckSelectTopBlocks(scores_any, mandatory_any, documents_any, counts_any);
  const OnDevice device(scores_any);
  const at::Tensor scores = scores_any.contiguous();
  const at::Tensor mandatory = mandatory_any.contiguous();
  const at::Tensor documents = documents_any.contiguous();
  const at::Tensor counts = counts_any.contiguous();
  at::Tensor mask = at::empty(scores.sizes(), mandatory.options());
  C10_CUDA_CHECK(LaunchSelectTopBlocks(
      scores.const_data_ptr<float>(), mandatory.const_data_ptr<uint8_t>(), scores.numel(),
      IndexArrayOf(documents), counts.numel(), IndexArrayOf(counts),
      mask.mutable_data_ptr<uint8_t>(), device.stream()));
  return mask;
}

at::Tensor RowsOfBlocks(const at::Tensor& starts_any, const at::Tensor& mask_any, int64_t rows,
                        at::ScalarType type) {
  CheckRowsOfBlocks(starts_any, mask_any, rows, type);
  const OnDevice device(mask_any);
  const at::Tensor starts = starts_any.contiguous();
  const at::Tensor mask = mask_any.contiguous();
  if (rows < 0) rows = (starts.diff() * mask.ne(0)).sum().item<int64_t>();
  at::Tensor offsets = at::empty({mask.numel() + 1}, mask.options().dtype(at::kLong));
  at::Tensor out = at::empty({rows}, mask.options().dtype(type));
  C10_CUDA_CHECK(LaunchRowsOfBlocks(IndexArrayOf(starts), mask.const_data_ptr<uint8_t>(),
                                    mask.numel(), offsets.mutable_data_ptr<int64_t>(), rows,
                                    out.mutable_data_ptr(), type == at::kLong, device.stream()));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(lemo, CUDA, m) {
  m.impl("select_top_blocks", SelectTopBlocks);
  m.impl("rows_of_blocks", RowsOfBlocks);
}

}  // namespace lemo::kernels::cuda
