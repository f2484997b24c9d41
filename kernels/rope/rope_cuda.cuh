// Launch function of rope: contiguous device arrays as in rope.h, half = D / 2. It enqueues on
// `stream` and returns the launch's error.
#pragma once

#include "kernels/cuda_launch.cuh"

namespace lemo::kernels::cuda {

cudaError_t LaunchRope(Element element, const void* x, const void* cos, const void* sin,
                       bool inverse, int64_t rows, int64_t heads, int64_t half, void* y,
                       cudaStream_t stream);

}  // namespace lemo::kernels::cuda
