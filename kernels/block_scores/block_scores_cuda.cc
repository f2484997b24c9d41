#include <ATen/ATen.h>
#include <torch/library.h>

#include "kernels/block_scores/block_scores_cuda.cuh"
#include "kernels/block_scores/block_scores_internal.h"
#include "kernels/cuda_bind.cuh"

namespace lemo::kernels::cuda {
namespace {

at::Tensor BlockScores(const at::Tensor& q_any, const at::Tensor& k_any, int64_t block_rows,
                       double scale) {
  CheckBlockScores(q_any, k_any, block_rows, scale);
  const OnDevice device(q_any);
  const at::Tensor q = q_any.contiguous();
  const at::Tensor k = k_any.contiguous();
  const BlockScoresShape shape = {.rows = q.size(0),
                                  .heads = q.size(1),
                                  .kv_heads = k.size(1),
                                  .width = q.size(2),
                                  .block_rows = block_rows,
                                  .blocks = BlockCount(q.size(0), block_rows)};
  at::Tensor maxima =
      at::zeros({shape.blocks, shape.blocks}, q.options().dtype(WideType(q.scalar_type())));
  C10_CUDA_CHECK(LaunchBlockScores(ElementOf(q), q.const_data_ptr(), k.const_data_ptr(), shape,
                                   scale, maxima.mutable_data_ptr(), device.stream()));
  return maxima;
}

}  // namespace

TORCH_LIBRARY_IMPL(lemo, CUDA, m) { m.impl("block_scores", BlockScores); }

}  // namespace lemo::kernels::cuda
