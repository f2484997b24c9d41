// The launch function of gather_rms_norm: contiguous device arrays as in gather_norm.h. It enqueues
// on `stream` and returns the launch's error. `idx.data` null: all rows (count = total).
#pragma once

#include "kernels/cuda_launch.cuh"

namespace lemo::kernels::cuda {

cudaError_t LaunchGatherRmsNorm(Element element, const void* src, int64_t total, IndexArray idx,
                                int64_t count, int64_t width, const void* weight, double eps,
                                void* x, void* y, void* rstd, cudaStream_t stream);

}  // namespace lemo::kernels::cuda
