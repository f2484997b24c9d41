// A block a row; a thread makes the words of one pack of columns.
#include "kernels/cuda_device.cuh"
#include "kernels/dropout/dropout_cuda.cuh"
#include "kernels/dropout/dropout_mask.h"

namespace lemo::kernels::cuda {
namespace {

template <typename T>
__device__ __forceinline__ T Masked(T x, uint32_t bits, uint32_t threshold, Wide<T> scale) {
  return bits < threshold ? Round<T>(Wide<T>{0}) : Round<T>(Load(x) * scale);
}

// kCount is 1 or even.
template <typename T, int kCount>
__global__ void DropoutKernel(const T* __restrict__ x, uint32_t threshold, Wide<T> scale,
                              int64_t seed, int64_t stream_id, IndexArray row_ids,
                              int64_t first_column, int64_t rows, int64_t width,
                              T* __restrict__ y) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const uint64_t state = DropoutRowState(seed, stream_id, IndexAt(row_ids, row));
    for (int64_t j = int64_t{threadIdx.x} * kCount; j < width; j += int64_t{blockDim.x} * kCount) {
      const auto in = LoadPack<kCount>(x + row * width + j);
      Pack<T, kCount> out;
      for (int i = 0; i < kCount; ++i) {
        const int64_t column = first_column + j + i;
        const uint64_t word = DropoutWord(state, column / 2);
        const auto bits = static_cast<uint32_t>(column % 2 == 0 ? word : word >> 32);
        out.values[i] = Masked(in.values[i], bits, threshold, scale);
      }
      StorePack(y + row * width + j, out);
    }
  }
}

}  // namespace

cudaError_t LaunchDropout(Element element, const void* x, uint32_t threshold, double scale,
                          int64_t seed, int64_t stream_id, IndexArray row_ids, int64_t first_column,
                          int64_t rows, int64_t width, void* y, cudaStream_t stream) {
  if (rows == 0 || width == 0) return cudaSuccess;
  return DispatchElement(element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int kCount = kPackElements<T>;
    const auto launch = [&](auto kernel, int64_t work) {
      const auto threads =
          static_cast<unsigned>(std::min<int64_t>(256, (work + kWarp - 1) / kWarp * kWarp));
      kernel<<<Blocks(rows, 1), threads, 0, stream>>>(
          static_cast<const T*>(x), threshold, static_cast<Wide<T>>(scale), seed, stream_id,
          row_ids, first_column, rows, width, static_cast<T*>(y));
    };
    if (CanPack<T>(width, kCount, x, y)) {
      launch(DropoutKernel<T, kCount>, width / kCount);
    } else {
      launch(DropoutKernel<T, 1>, width);
    }
    return cudaGetLastError();
  });
}

}  // namespace lemo::kernels::cuda
