// A thread block takes 32 columns of a block of rows, kLanes rows at a time: a warp reads 32
// neighbouring elements. Sums of the lanes are added in order, so they are the same in every run.
#include <cassert>

#include "kernels/block_pool/block_pool_cuda.cuh"
#include "kernels/cuda_device.cuh"

namespace lemo::kernels::cuda {
namespace {

constexpr int kColumns = 32;
constexpr int kLanes = 8;

// Values after ReLU are not negative, so their bits order as integers, and NaN is above Inf.
__device__ __forceinline__ int BitsOf(float x) { return __float_as_int(x) & 0x7fffffff; }
__device__ __forceinline__ long long BitsOf(double x) {
  return __double_as_longlong(x) & 0x7fffffffffffffffll;
}
__device__ __forceinline__ float FromBits(int bits) { return __int_as_float(bits); }
__device__ __forceinline__ double FromBits(long long bits) { return __longlong_as_double(bits); }
template <typename W>
using BitsType = decltype(BitsOf(W{}));

template <typename W>
__device__ __forceinline__ W Rectified(W x) {
  return x < 0 ? W{0} : x;  // keeps NaN
}

struct Rows {
  int64_t begin;
  int64_t end;
};

__device__ __forceinline__ Rows BlockRows(IndexArray starts, int64_t b, int64_t total) {
  const int64_t begin = IndexAt(starts, b);
  const int64_t end = IndexAt(starts, b + 1);
  assert(begin >= 0 && begin < end && end <= total && "starts must ascend in [0, N]");
  return {max(int64_t{0}, begin), min(total, end)};
}

template <typename T>
__global__ void __launch_bounds__(kColumns* kLanes)
    ForwardKernel(const T* __restrict__ u, int64_t total, int64_t width, IndexArray starts,
                  const Wide<T>* __restrict__ row_scale, Wide<T>* __restrict__ z) {
  using W = Wide<T>;
  using B = BitsType<W>;
  __shared__ W sums[kLanes][kColumns];
  __shared__ B maxima[kLanes][kColumns];
  const int64_t b = blockIdx.x;
  const Rows rows = BlockRows(starts, b, total);
  const int64_t column = int64_t{blockIdx.y} * kColumns + threadIdx.x;
  W sum = 0;
  B best = 0;
  if (column < width) {
    for (int64_t i = rows.begin + threadIdx.y; i < rows.end; i += kLanes) {
      const W scale = row_scale != nullptr ? row_scale[i] : W{1};
      const W value = Rectified(scale * Load(u[i * width + column]));
      sum += value;
      best = max(best, BitsOf(value));
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  maxima[threadIdx.y][threadIdx.x] = best;
  __syncthreads();
  if (threadIdx.y != 0 || column >= width) return;
  for (int lane = 1; lane < kLanes; ++lane) {
    sum += sums[lane][threadIdx.x];
    best = max(best, maxima[lane][threadIdx.x]);
  }
  z[b * 2 * width + column] = sum / static_cast<W>(rows.end - rows.begin);
  z[(b * 2 + 1) * width + column] = FromBits(best);
}

template <typename T>
__global__ void __launch_bounds__(kColumns* kLanes)
    BackwardKernel(const Wide<T>* __restrict__ dz, const T* __restrict__ u, int64_t total,
                   int64_t width, IndexArray starts, const Wide<T>* __restrict__ row_scale,
                   T* __restrict__ du) {
  using W = Wide<T>;
  using B = BitsType<W>;
  __shared__ B maxima[kLanes][kColumns];
  __shared__ int64_t firsts[kLanes][kColumns];
  const int64_t b = blockIdx.x;
  const Rows rows = BlockRows(starts, b, total);
  const int64_t column = int64_t{blockIdx.y} * kColumns + threadIdx.x;
  B best = -1;
  int64_t first = rows.end;
  if (column < width) {
    for (int64_t i = rows.begin + threadIdx.y; i < rows.end; i += kLanes) {
      const W scale = row_scale != nullptr ? row_scale[i] : W{1};
      const B bits = BitsOf(Rectified(scale * Load(u[i * width + column])));
      if (bits > best) {
        best = bits;
        first = i;
      }
    }
  }
  maxima[threadIdx.y][threadIdx.x] = best;
  firsts[threadIdx.y][threadIdx.x] = first;
  __syncthreads();
  if (column >= width) return;
  for (int lane = 0; lane < kLanes; ++lane) {
    const B other = maxima[lane][threadIdx.x];
    const int64_t row = firsts[lane][threadIdx.x];
    if (other > best || (other == best && row < first)) {
      best = other;
      first = row;
    }
  }
  const W mean = dz[b * 2 * width + column] / static_cast<W>(rows.end - rows.begin);
  const W peak = dz[(b * 2 + 1) * width + column];
  for (int64_t i = rows.begin + threadIdx.y; i < rows.end; i += kLanes) {
    const W scale = row_scale != nullptr ? row_scale[i] : W{1};
    const bool passes = scale * Load(u[i * width + column]) > 0;
    const W grad = mean + (i == first ? peak : W{0});
    du[i * width + column] = Round<T>(passes ? scale * grad : W{0});
  }
}

dim3 Grid(int64_t blocks, int64_t width) {
  return dim3(static_cast<unsigned>(blocks),
              static_cast<unsigned>((width + kColumns - 1) / kColumns));
}

}  // namespace

cudaError_t LaunchBlockMeanMax(Element element, const void* u, int64_t rows, int64_t width,
                               IndexArray starts, int64_t blocks, const void* row_scale, void* z,
                               cudaStream_t stream) {
  if (blocks == 0 || width == 0) return cudaSuccess;
  return DispatchElement(element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    ForwardKernel<T><<<Grid(blocks, width), dim3(kColumns, kLanes), 0, stream>>>(
        static_cast<const T*>(u), rows, width, starts, static_cast<const Wide<T>*>(row_scale),
        static_cast<Wide<T>*>(z));
    return cudaGetLastError();
  });
}

cudaError_t LaunchBlockMeanMaxBackward(Element element, const void* dz, const void* u, int64_t rows,
                                       int64_t width, IndexArray starts, int64_t blocks,
                                       const void* row_scale, void* du, cudaStream_t stream) {
  if (blocks == 0 || width == 0) return cudaSuccess;
  return DispatchElement(element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    BackwardKernel<T><<<Grid(blocks, width), dim3(kColumns, kLanes), 0, stream>>>(
        static_cast<const Wide<T>*>(dz), static_cast<const T*>(u), rows, width, starts,
        static_cast<const Wide<T>*>(row_scale), static_cast<T*>(du));
    return cudaGetLastError();
  });
}

}  // namespace lemo::kernels::cuda
