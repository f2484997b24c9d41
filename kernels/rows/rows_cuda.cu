// A block a row, 16 bytes a thread where address and width allow. No atomics: no row occurs twice.
#include <cassert>
#include <cstring>

#include "kernels/cuda_device.cuh"
#include "kernels/rows/rows_cuda.cuh"

namespace lemo::kernels::cuda {
namespace {

// The source row of output row k, or -1 where the list is wrong.
__device__ __forceinline__ int64_t CheckedRow(IndexArray idx, int64_t k, int64_t total) {
  if (idx.data == nullptr) return k;
  const int64_t row = IndexAt(idx, k);
  assert(row >= 0 && row < total && "row list entry out of range");
  assert((k == 0 || IndexAt(idx, k - 1) < row) && "row list not strictly ascending");
  return row >= 0 && row < total ? row : -1;
}

// Unit: the widest integer that divides the row and the addresses.
template <typename Unit>
__global__ void GatherKernel(const Unit* __restrict__ src, int64_t total, IndexArray idx,
                             int64_t count, int64_t units, Unit* __restrict__ out) {
  for (int64_t k = blockIdx.x; k < count; k += gridDim.x) {
    const int64_t row = CheckedRow(idx, k, total);
    Unit poison;
    memset(&poison, 0xff, sizeof(Unit));  // NaN in every floating type
    for (int64_t u = threadIdx.x; u < units; u += blockDim.x) {
      out[k * units + u] = row >= 0 ? src[row * units + u] : poison;
    }
  }
}

template <typename T, int kCount>
__global__ void ScatterAddKernel(T* __restrict__ dst, int64_t total, IndexArray idx, int64_t count,
                                 int64_t width, const T* __restrict__ delta) {
  for (int64_t k = blockIdx.x; k < count; k += gridDim.x) {
    const int64_t row = CheckedRow(idx, k, total);
    if (row < 0) continue;
    for (int64_t j = int64_t{threadIdx.x} * kCount; j < width; j += int64_t{blockDim.x} * kCount) {
      auto sum = LoadPack<kCount>(dst + row * width + j);
      const auto added = LoadPack<kCount>(delta + k * width + j);
      for (int i = 0; i < kCount; ++i) {
        sum.values[i] = Round<T>(Load(sum.values[i]) + Load(added.values[i]));
      }
      StorePack(dst + row * width + j, sum);
    }
  }
}

// A whole number of warps for `work` items, at most 256 threads.
unsigned ThreadsFor(int64_t work) {
  return static_cast<unsigned>(std::min<int64_t>(256, (work + kWarp - 1) / kWarp * kWarp));
}

template <typename Unit>
cudaError_t Gather(const void* src, int64_t total, IndexArray idx, int64_t count, int64_t row_bytes,
                   void* out, cudaStream_t stream) {
  const int64_t units = row_bytes / static_cast<int64_t>(sizeof(Unit));
  GatherKernel<Unit><<<Blocks(count, 1), ThreadsFor(units), 0, stream>>>(
      static_cast<const Unit*>(src), total, idx, count, units, static_cast<Unit*>(out));
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchGatherRows(const void* src, int64_t total, IndexArray idx, int64_t count,
                             int64_t row_bytes, void* out, cudaStream_t stream) {
  if (count == 0 || row_bytes == 0) return cudaSuccess;
  const uintptr_t common = reinterpret_cast<uintptr_t>(src) | reinterpret_cast<uintptr_t>(out) |
                           static_cast<uintptr_t>(row_bytes);
  if (common % 16 == 0) return Gather<uint4>(src, total, idx, count, row_bytes, out, stream);
  if (common % 4 == 0) return Gather<uint32_t>(src, total, idx, count, row_bytes, out, stream);
  return Gather<uint16_t>(src, total, idx, count, row_bytes, out, stream);
}

cudaError_t LaunchScatterAddRows(Element element, void* dst, int64_t total, IndexArray idx,
                                 int64_t count, int64_t width, const void* delta,
                                 cudaStream_t stream) {
  if (count == 0 || width == 0) return cudaSuccess;
  return DispatchElement(element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int kCount = kPackElements<T>;
    T* to = static_cast<T*>(dst);
    const T* from = static_cast<const T*>(delta);
    if (CanPack<T>(width, kCount, dst, delta)) {
      ScatterAddKernel<T, kCount><<<Blocks(count, 1), ThreadsFor(width / kCount), 0, stream>>>(
          to, total, idx, count, width, from);
    } else {
      ScatterAddKernel<T, 1>
          <<<Blocks(count, 1), ThreadsFor(width), 0, stream>>>(to, total, idx, count, width, from);
    }
    return cudaGetLastError();
  });
}

}  // namespace lemo::kernels::cuda
