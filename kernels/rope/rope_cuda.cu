// A block a token: its tables stay in L1 for all heads. A thread turns one pack of pairs.
#include "kernels/cuda_device.cuh"
#include "kernels/rope/rope_cuda.cuh"

namespace lemo::kernels::cuda {
namespace {

template <typename T, int kCount>
__global__ void RopeKernel(const T* __restrict__ x, const Wide<T>* __restrict__ cos,
                           const Wide<T>* __restrict__ sin, Wide<T> sign, int64_t rows,
                           int64_t heads, int64_t half, T* __restrict__ y) {
  using W = Wide<T>;
  const int64_t packs = half / kCount;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    for (int64_t t = threadIdx.x; t < heads * packs; t += blockDim.x) {
      const int64_t head = t / packs;
      const int64_t i = (t - head * packs) * kCount;
      const int64_t at = (row * heads + head) * 2 * half + i;
      const auto first = LoadPack<kCount>(x + at);
      const auto second = LoadPack<kCount>(x + at + half);
      const auto c = LoadPack<kCount>(cos + row * half + i);
      const auto s = LoadPack<kCount>(sin + row * half + i);
      Pack<T, kCount> turned_first;
      Pack<T, kCount> turned_second;
      for (int k = 0; k < kCount; ++k) {
        const W a = Load(first.values[k]);
        const W b = Load(second.values[k]);
        const W signed_sin = sign * s.values[k];
        turned_first.values[k] = Round<T>(a * c.values[k] - b * signed_sin);
        turned_second.values[k] = Round<T>(b * c.values[k] + a * signed_sin);
      }
      StorePack(y + at, turned_first);
      StorePack(y + at + half, turned_second);
    }
  }
}

}  // namespace

cudaError_t LaunchRope(Element element, const void* x, const void* cos, const void* sin,
                       bool inverse, int64_t rows, int64_t heads, int64_t half, void* y,
                       cudaStream_t stream) {
  if (rows == 0 || heads == 0 || half == 0) return cudaSuccess;
  return DispatchElement(element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int kCount = kPackElements<T>;
    const auto launch = [&](auto kernel, int64_t work) {
      const auto threads =
          static_cast<unsigned>(std::min<int64_t>(256, (work + kWarp - 1) / kWarp * kWarp));
      kernel<<<Blocks(rows, 1), threads, 0, stream>>>(
          static_cast<const T*>(x), static_cast<const Wide<T>*>(cos),
          static_cast<const Wide<T>*>(sin), static_cast<Wide<T>>(inverse ? -1 : 1), rows, heads,
          half, static_cast<T*>(y));
    };
    if (CanPack<T>(half, kCount, x, cos, sin, y)) {
      launch(RopeKernel<T, kCount>, heads * half / kCount);
    } else {
      launch(RopeKernel<T, 1>, heads * half);
    }
    return cudaGetLastError();
  });
}

}  // namespace lemo::kernels::cuda
