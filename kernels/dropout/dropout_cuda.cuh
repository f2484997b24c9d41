// Launch function of dropout: contiguous device arrays as in dropout.h; `threshold` and `scale` as
// the CPU version makes them. It enqueues on `stream` and returns the launch's error.
#pragma once

#include "kernels/cuda_launch.cuh"

namespace lemo::kernels::cuda {

cudaError_t LaunchDropout(Element element, const void* x, uint32_t threshold, double scale,
                          int64_t seed, int64_t stream_id, IndexArray row_ids, int64_t first_column,
                          int64_t rows, int64_t width, void* y, cudaStream_t stream);

}  // namespace lemo::kernels::cuda
