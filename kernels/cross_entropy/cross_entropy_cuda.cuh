// Launch function of cross_entropy_: contiguous device arrays as in cross_entropy.h, loss and
// correct filled for every row. It enqueues on `stream` and returns the launch's error.
#pragma once

#include "kernels/cuda_launch.cuh"

namespace lemo::kernels::cuda {

cudaError_t LaunchCrossEntropy(Element element, void* logits, IndexArray labels, double scale,
                               bool want_gradient, int64_t rows, int64_t vocabulary, void* loss,
                               bool* correct, cudaStream_t stream);

}  // namespace lemo::kernels::cuda
