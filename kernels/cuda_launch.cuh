// What the CUDA launch functions share; .cuh marks the headers that need the CUDA toolkit. No torch
// here: nvcc takes 47 s for a file with torch's headers and 16 s for one without, so the .cu files
// see plain pointers and the bindings beside them see both.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace lemo::kernels::cuda {

enum class Element { kFloat64, kFloat32, kBFloat16, kFloat16 };

// Row lists and labels: int32 or int64 values.
struct IndexArray {
  const void* data = nullptr;
  bool is_wide = false;
};

}  // namespace lemo::kernels::cuda
