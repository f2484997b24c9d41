// Launch functions of block_mean_max: contiguous device arrays as in block_pool.h. They enqueue on
// `stream` and return the launch's error. `row_scale` may be null.
#pragma once

#include "kernels/cuda_launch.cuh"

namespace lemo::kernels::cuda {

cudaError_t LaunchBlockMeanMax(Element element, const void* u, int64_t rows, int64_t width,
                               IndexArray starts, int64_t blocks, const void* row_scale, void* z,
                               cudaStream_t stream);

cudaError_t LaunchBlockMeanMaxBackward(Element element, const void* dz, const void* u, int64_t rows,
                                       int64_t width, IndexArray starts, int64_t blocks,
                                       const void* row_scale, void* du, cudaStream_t stream);

}  // namespace lemo::kernels::cuda
