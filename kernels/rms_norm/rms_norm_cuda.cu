// One warp a row up to 1024 columns (QK norm has 64 or 128), a block a row above. The second read
// of a row comes from L1 or L2. dweight is made in two steps without atomics: column sums of row
// chunks, then the sum of the chunks in order, so it is the same in every run.
#include "kernels/cuda_device.cuh"
#include "kernels/rms_norm/rms_norm_cuda.cuh"

namespace lemo::kernels::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int kGradColumns = 32;
constexpr int kGradRows = 8;

template <typename T, int kCount, int kThreads>
__global__ void __launch_bounds__(kBlock)
    ForwardKernel(const T* __restrict__ x, const T* __restrict__ weight, double eps, int64_t rows,
                  int64_t width, T* __restrict__ y, Wide<T>* __restrict__ rstd) {
  using W = Wide<T>;
  constexpr int kRows = kBlock / kThreads;
  const int lane = threadIdx.x % kThreads;
  for (int64_t row = int64_t{blockIdx.x} * kRows + threadIdx.x / kThreads; row < rows;
       row += int64_t{gridDim.x} * kRows) {
    const T* from = x + row * width;
    T* to = y + row * width;
    W squares = 0;
    for (int64_t j = int64_t{lane} * kCount; j < width; j += kThreads * kCount) {
      const auto pack = LoadPack<kCount>(from + j);
      for (int i = 0; i < kCount; ++i) squares += Load(pack.values[i]) * Load(pack.values[i]);
    }
    squares = RowSum<kThreads>(squares);
    // In double, as the CPU version: a few operations a row.
    const W scale = static_cast<W>(1.0 / sqrt(static_cast<double>(squares) / width + eps));
    if (lane == 0) rstd[row] = scale;
    for (int64_t j = int64_t{lane} * kCount; j < width; j += kThreads * kCount) {
      const auto values = LoadPack<kCount>(from + j);
      const auto weights = LoadPack<kCount>(weight + j);
      Pack<T, kCount> out;
      for (int i = 0; i < kCount; ++i) {
        const T normalised = Round<T>(Load(values.values[i]) * scale);
        out.values[i] = Round<T>(Load(weights.values[i]) * Load(normalised));
      }
      StorePack(to + j, out);
    }
  }
}

template <typename T, int kCount, int kThreads>
__global__ void __launch_bounds__(kBlock)
    BackwardKernel(const T* __restrict__ dy, const T* __restrict__ x,
                   const Wide<T>* __restrict__ rstd, const T* __restrict__ weight, int64_t rows,
                   int64_t width, T* __restrict__ dx) {
  using W = Wide<T>;
  constexpr int kRows = kBlock / kThreads;
  const int lane = threadIdx.x % kThreads;
  for (int64_t row = int64_t{blockIdx.x} * kRows + threadIdx.x / kThreads; row < rows;
       row += int64_t{gridDim.x} * kRows) {
    const int64_t start = row * width;
    W sum = 0;
    for (int64_t j = int64_t{lane} * kCount; j < width; j += kThreads * kCount) {
      const auto grads = LoadPack<kCount>(dy + start + j);
      const auto values = LoadPack<kCount>(x + start + j);
      const auto weights = LoadPack<kCount>(weight + j);
      for (int i = 0; i < kCount; ++i) {
        sum += Load(grads.values[i]) * Load(weights.values[i]) * Load(values.values[i]);
      }
    }
    const W scale = rstd[row];
    const W projection = RowSum<kThreads>(sum) * scale / static_cast<W>(width);
    for (int64_t j = int64_t{lane} * kCount; j < width; j += kThreads * kCount) {
      const auto grads = LoadPack<kCount>(dy + start + j);
      const auto values = LoadPack<kCount>(x + start + j);
      const auto weights = LoadPack<kCount>(weight + j);
      Pack<T, kCount> out;
      for (int i = 0; i < kCount; ++i) {
        out.values[i] = Round<T>(scale * (Load(grads.values[i]) * Load(weights.values[i]) -
                                          Load(values.values[i]) * scale * projection));
      }
      StorePack(dx + start + j, out);
    }
  }
}

// Block (32 columns, 8 rows) sums one chunk of rows for 32 columns. gridDim.x: column groups, .y:
// chunks.
template <typename T>
__global__ void __launch_bounds__(kGradColumns* kGradRows)
    WeightPartialKernel(const T* __restrict__ dy, const T* __restrict__ x,
                        const Wide<T>* __restrict__ rstd, int64_t rows, int64_t width,
                        int64_t chunk_rows, Wide<T>* __restrict__ partials) {
  using W = Wide<T>;
  __shared__ W sums[kGradRows][kGradColumns + 1];
  const int64_t column = int64_t{blockIdx.x} * kGradColumns + threadIdx.x;
  const int64_t begin = int64_t{blockIdx.y} * chunk_rows;
  const int64_t end = min(rows, begin + chunk_rows);
  W sum = 0;
  if (column < width) {
    for (int64_t row = begin + threadIdx.y; row < end; row += kGradRows) {
      const int64_t at = row * width + column;
      sum += Load(dy[at]) * Load(Round<T>(Load(x[at]) * rstd[row]));
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= width) return;
  for (int r = 1; r < kGradRows; ++r) sum += sums[r][threadIdx.x];
  partials[int64_t{blockIdx.y} * width + column] = sum;
}

template <typename T>
__global__ void __launch_bounds__(kBlock)
    WeightSumKernel(const Wide<T>* __restrict__ partials, int64_t chunks, int64_t width,
                    T* __restrict__ dweight) {
  for (int64_t column = int64_t{blockIdx.x} * kBlock + threadIdx.x; column < width;
       column += int64_t{gridDim.x} * kBlock) {
    double sum = 0;
    for (int64_t c = 0; c < chunks; ++c) sum += partials[c * width + column];
    dweight[column] = Round<T>(static_cast<Wide<T>>(sum));
  }
}

// Calls `launch` with the pack size and the threads a row as integral constants.
template <typename T, typename F>
void ByShape(int64_t width, bool packed, F&& launch) {
  using std::integral_constant;
  using One = integral_constant<int, 1>;
  using Many = integral_constant<int, kPackElements<T>>;
  using Warp = integral_constant<int, kWarp>;
  using WholeBlock = integral_constant<int, kBlock>;
  if (width <= 1024) {
    packed ? launch(Many{}, Warp{}) : launch(One{}, Warp{});
  } else {
    packed ? launch(Many{}, WholeBlock{}) : launch(One{}, WholeBlock{});
  }
}

}  // namespace

cudaError_t LaunchRmsNorm(Element element, const void* x, const void* weight, double eps,
                          int64_t rows, int64_t width, void* y, void* rstd, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  return DispatchElement(element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    ByShape<T>(width, CanPack<T>(width, kPackElements<T>, x, weight, y),
               [&](auto count, auto threads) {
                 ForwardKernel<T, count(), threads()>
                     <<<Blocks(rows, kBlock / threads()), kBlock, 0, stream>>>(
                         static_cast<const T*>(x), static_cast<const T*>(weight), eps, rows, width,
                         static_cast<T*>(y), static_cast<Wide<T>*>(rstd));
               });
    return cudaGetLastError();
  });
}

cudaError_t LaunchRmsNormBackward(Element element, const void* dy, const void* x, const void* rstd,
                                  const void* weight, int64_t rows, int64_t width, void* dx,
                                  cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  return DispatchElement(element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    ByShape<T>(width, CanPack<T>(width, kPackElements<T>, dy, x, weight, dx),
               [&](auto count, auto threads) {
                 BackwardKernel<T, count(), threads()>
                     <<<Blocks(rows, kBlock / threads()), kBlock, 0, stream>>>(
                         static_cast<const T*>(dy), static_cast<const T*>(x),
                         static_cast<const Wide<T>*>(rstd), static_cast<const T*>(weight), rows,
                         width, static_cast<T*>(dx));
               });
    return cudaGetLastError();
  });
}

int64_t RmsNormWeightChunks(int64_t rows) { return std::min<int64_t>(256, (rows + 31) / 32); }

cudaError_t LaunchRmsNormWeightGrad(Element element, const void* dy, const void* x,
                                    const void* rstd, int64_t rows, int64_t width, void* partials,
                                    void* dweight, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  const int64_t chunks = RmsNormWeightChunks(rows);
  const int64_t chunk_rows = (rows + chunks - 1) / chunks;
  return DispatchElement(element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const dim3 grid(static_cast<unsigned>((width + kGradColumns - 1) / kGradColumns),
                    static_cast<unsigned>(chunks));
    WeightPartialKernel<T><<<grid, dim3(kGradColumns, kGradRows), 0, stream>>>(
        static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<const Wide<T>*>(rstd),
        rows, width, chunk_rows, static_cast<Wide<T>*>(partials));
    WeightSumKernel<T><<<Blocks(width, kBlock), kBlock, 0, stream>>>(
        static_cast<const Wide<T>*>(partials), chunks, width, static_cast<T*>(dweight));
    return cudaGetLastError();
  });
}

}  // namespace lemo::kernels::cuda
