// Launch functions. Of cross_entropy_: contiguous device arrays as in cross_entropy.h, loss and
// correct filled for every row. Each enqueues on `stream` and returns the launch's error.
#pragma once

#include "kernels/cuda_launch.cuh"

namespace lemo::kernels::cuda {

cudaError_t LaunchCrossEntropy(Element element, void* logits, IndexArray labels, double scale,
                               bool want_gradient, int64_t rows, int64_t vocabulary, void* loss,
                               bool* correct, cudaStream_t stream);

// Of cross_entropy_statistics: `statistics` double [4, rows]; of cross_entropy_gradient_: `largest`
// and `total` double [rows].
cudaError_t LaunchCrossEntropyStatistics(Element element, const void* logits, IndexArray labels,
                                         int64_t rows, int64_t columns, double* statistics,
                                         cudaStream_t stream);
cudaError_t LaunchCrossEntropyGradient(Element element, void* logits, IndexArray labels,
                                       const double* largest, const double* total, double scale,
                                       int64_t rows, int64_t columns, cudaStream_t stream);

}  // namespace lemo::kernels::cuda
