// rms_norm's kernel with a row list before it: the same threads a row and the same order of sums,
// so the same bits. The first read of a row comes from memory and goes out to x at once; the second
// comes from L1 or L2.
#include <cassert>

#include "kernels/cuda_device.cuh"
#include "kernels/gather_norm/gather_norm_cuda.cuh"

namespace lemo::kernels::cuda {
namespace {

constexpr int kBlock = 256;

template <typename T, int kCount, int kThreads>
__global__ void __launch_bounds__(kBlock)
    GatherNormKernel(const T* __restrict__ src, int64_t total, IndexArray idx, int64_t count,
                     int64_t width, const T* __restrict__ weight, double eps, T* __restrict__ x,
                     T* __restrict__ y, Wide<T>* __restrict__ rstd) {
  using W = Wide<T>;
  constexpr int kRows = kBlock / kThreads;
  const int lane = threadIdx.x % kThreads;
  for (int64_t k = int64_t{blockIdx.x} * kRows + threadIdx.x / kThreads; k < count;
       k += int64_t{gridDim.x} * kRows) {
    const int64_t row = idx.data == nullptr ? k : IndexAt(idx, k);
    const bool valid = row >= 0 && row < total;
    assert(valid && "row list entry out of range");
    assert((idx.data == nullptr || k == 0 || IndexAt(idx, k - 1) < row) &&
           "row list not strictly ascending");
    const T* from = src + (valid ? row : 0) * width;
    T* copy = x + k * width;
    T* to = y + k * width;
    W squares = 0;
    for (int64_t j = int64_t{lane} * kCount; j < width; j += kThreads * kCount) {
      auto pack = LoadPack<kCount>(from + j);
      if (!valid) {  // NaN, so that the mistake shows
        for (int i = 0; i < kCount; ++i) pack.values[i] = Round<T>(static_cast<W>(NAN));
      }
      StorePack(copy + j, pack);
      for (int i = 0; i < kCount; ++i) squares += Load(pack.values[i]) * Load(pack.values[i]);
    }
    squares = RowSum<kThreads>(squares);
    const W scale = static_cast<W>(1.0 / sqrt(static_cast<double>(squares) / width + eps));
    if (lane == 0) rstd[k] = scale;
    for (int64_t j = int64_t{lane} * kCount; j < width; j += kThreads * kCount) {
      const auto values = LoadPack<kCount>(from + j);
      const auto weights = LoadPack<kCount>(weight + j);
      Pack<T, kCount> out;
      for (int i = 0; i < kCount; ++i) {
        // scale is NaN where the row is not valid
        const T normalised = Round<T>(Load(values.values[i]) * scale);
        out.values[i] = Round<T>(Load(weights.values[i]) * Load(normalised));
      }
      StorePack(to + j, out);
    }
  }
}

}  // namespace

cudaError_t LaunchGatherRmsNorm(Element element, const void* src, int64_t total, IndexArray idx,
                                int64_t count, int64_t width, const void* weight, double eps,
                                void* x, void* y, void* rstd, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  return DispatchElement(element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto launch = [&](auto pack, auto threads) {
      GatherNormKernel<T, pack(), threads()>
          <<<Blocks(count, kBlock / threads()), kBlock, 0, stream>>>(
              static_cast<const T*>(src), total, idx, count, width, static_cast<const T*>(weight),
              eps, static_cast<T*>(x), static_cast<T*>(y), static_cast<Wide<T>*>(rstd));
    };
    // As rms_norm chooses.
    using std::integral_constant;
    using One = integral_constant<int, 1>;
    using Many = integral_constant<int, kPackElements<T>>;
    using Warp = integral_constant<int, kWarp>;
    using WholeBlock = integral_constant<int, kBlock>;
    const bool packed = CanPack<T>(width, kPackElements<T>, src, weight, x, y);
    if (width <= 1024) {
      packed ? launch(Many{}, Warp{}) : launch(One{}, Warp{});
    } else {
      packed ? launch(Many{}, WholeBlock{}) : launch(One{}, WholeBlock{});
    }
    return cudaGetLastError();
  });
}

}  // namespace lemo::kernels::cuda
