// Launch functions of gather_rows and scatter_add_rows_: contiguous device arrays as in rows.h.
// They enqueue on `stream` and return the launch's error. `idx.data` null: all rows (count =
// total).
#pragma once

#include "kernels/cuda_launch.cuh"

namespace lemo::kernels::cuda {

// Rows are moved as bytes: the element type does not matter.
cudaError_t LaunchGatherRows(const void* src, int64_t total, IndexArray idx, int64_t count,
                             int64_t row_bytes, void* out, cudaStream_t stream);

cudaError_t LaunchScatterAddRows(Element element, void* dst, int64_t total, IndexArray idx,
                                 int64_t count, int64_t width, const void* delta,
                                 cudaStream_t stream);

}  // namespace lemo::kernels::cuda
