// Launch functions of block_select: contiguous device arrays as in block_select.h. They enqueue on
// `stream` and return the launch's error.
#pragma once

#include "kernels/cuda_launch.cuh"

namespace lemo::kernels::cuda {

cudaError_t LaunchSelectTopBlocks(const float* scores, const uint8_t* mandatory, int64_t blocks,
                                  IndexArray documents, int64_t document_count, IndexArray counts,
                                  uint8_t* mask, cudaStream_t stream);

// `offsets` [blocks + 1] is scratch. `out` has int64 entries where `is_wide`, else int32.
cudaError_t LaunchRowsOfBlocks(IndexArray starts, const uint8_t* mask, int64_t blocks,
                               int64_t* offsets, int64_t rows, void* out, bool is_wide,
                               cudaStream_t stream);

}  // namespace lemo::kernels::cuda
