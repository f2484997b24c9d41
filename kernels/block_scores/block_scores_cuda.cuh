// The launch function of block_scores: contiguous device arrays as in block_scores.h. It enqueues
// on `stream` and returns the launch's error. `maxima` [Nb, Nb], of the result's type, must be 0
// already.
#pragma once

#include "kernels/cuda_launch.cuh"

namespace lemo::kernels::cuda {

struct BlockScoresShape {
  int64_t rows = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t width = 0;  // of a head
  int64_t block_rows = 0;
  int64_t blocks = 0;
};

cudaError_t LaunchBlockScores(Element element, const void* q, const void* k,
                              const BlockScoresShape& shape, double scale, void* maxima,
                              cudaStream_t stream);

}  // namespace lemo::kernels::cuda
