// Launch functions of swiglu: contiguous device arrays of `count` elements. They enqueue on
// `stream` and return the launch's error.
#pragma once

#include "kernels/cuda_launch.cuh"

namespace lemo::kernels::cuda {

cudaError_t LaunchSwiGlu(Element element, const void* gate, const void* up, int64_t count, void* h,
                         cudaStream_t stream);

cudaError_t LaunchSwiGluBackward(Element element, const void* dh, const void* gate, const void* up,
                                 int64_t count, void* dgate, void* dup, cudaStream_t stream);

}  // namespace lemo::kernels::cuda
