// Launch functions of rms_norm: contiguous device arrays as in rms_norm.h, flattened to rows x
// width. They enqueue on `stream` and return the launch's error. No rows: no launch, and `dweight`
// must be 0 already.
#pragma once

#include "kernels/cuda_launch.cuh"

namespace lemo::kernels::cuda {

cudaError_t LaunchRmsNorm(Element element, const void* x, const void* weight, double eps,
                          int64_t rows, int64_t width, void* y, void* rstd, cudaStream_t stream);

cudaError_t LaunchRmsNormBackward(Element element, const void* dy, const void* x, const void* rstd,
                                  const void* weight, int64_t rows, int64_t width, void* dx,
                                  cudaStream_t stream);

// How many partial sums [chunks, width], of rstd's type, dweight is made from: a function of the
// shape alone, so that the sum is the same on every device.
int64_t RmsNormWeightChunks(int64_t rows);

cudaError_t LaunchRmsNormWeightGrad(Element element, const void* dy, const void* x,
                                    const void* rstd, int64_t rows, int64_t width, void* partials,
                                    void* dweight, cudaStream_t stream);

}  // namespace lemo::kernels::cuda
