// Launch functions of block_informativeness: contiguous device arrays as in block_scan.h. They
// enqueue on `stream` and return the launch's error. `combine` is the number of a Combine.
#pragma once

#include "kernels/cuda_launch.cuh"

namespace lemo::kernels::cuda {

// How many parts the sum over columns is made in.
int64_t InformativenessParts(int64_t width);

// `parts` [InformativenessParts(width), blocks], of the result's type: their sum over the first
// dimension is the result.
cudaError_t LaunchBlockInformativeness(Element element, const void* q, const void* k,
                                       int64_t blocks, int64_t width, IndexArray documents,
                                       int64_t document_count, int combine, void* parts,
                                       cudaStream_t stream);

cudaError_t LaunchBlockInformativenessBackward(Element element, const void* di, const void* q,
                                               const void* k, int64_t blocks, int64_t width,
                                               IndexArray documents, int64_t document_count,
                                               int combine, void* dq, void* dk,
                                               cudaStream_t stream);

}  // namespace lemo::kernels::cuda
