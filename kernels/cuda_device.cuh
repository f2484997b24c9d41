// Device code that the CUDA versions share: element types, vectors of elements, reductions, launch
// sizes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda_launch.cuh"

namespace lemo::kernels::cuda {

inline constexpr int kWarp = 32;

// The type that arithmetic on T is done in.
template <typename T>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
template <typename T>
using Wide = typename WideOf<T>::type;

__device__ __forceinline__ double Load(double x) { return x; }
__device__ __forceinline__ float Load(float x) { return x; }
__device__ __forceinline__ float Load(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float Load(__half x) { return __half2float(x); }

template <typename T>
__device__ __forceinline__ T Round(Wide<T> x);
template <>
__device__ __forceinline__ double Round<double>(double x) {
  return x;
}
template <>
__device__ __forceinline__ float Round<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 Round<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half Round<__half>(float x) {
  return __float2half_rn(x);
}

__device__ __forceinline__ float Exp(float x) { return expf(x); }
__device__ __forceinline__ double Exp(double x) { return exp(x); }

// `kCount` neighbouring elements that move as one access of up to 16 bytes.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Pack {
  T values[kCount];
};

template <typename T>
inline constexpr int kPackElements = 16 / sizeof(T);

template <int kCount, typename T>
__device__ __forceinline__ Pack<T, kCount> LoadPack(const T* data) {
  return *reinterpret_cast<const Pack<T, kCount>*>(data);
}

template <typename T, int kCount>
__device__ __forceinline__ void StorePack(T* data, const Pack<T, kCount>& pack) {
  *reinterpret_cast<Pack<T, kCount>*>(data) = pack;
}

__device__ __forceinline__ int64_t IndexAt(IndexArray array, int64_t i) {
  return array.is_wide ? static_cast<const int64_t*>(array.data)[i]
                       : static_cast<const int32_t*>(array.data)[i];
}

template <typename W>
__device__ __forceinline__ W WarpSum(W value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}

// The sum over the kThreads threads that share a row; every one of them gets it. One warp a row, or
// the whole block, which then must call this together.
template <int kThreads, typename W>
__device__ __forceinline__ W RowSum(W value) {
  value = WarpSum(value);
  if constexpr (kThreads > kWarp) {
    __shared__ W warps[kThreads / kWarp];
    __syncthreads();  // the last call's readers are done
    if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = 0;
    for (int w = 0; w < kThreads / kWarp; ++w) value += warps[w];
  }
  return value;
}

// Whether rows of `width` elements at all of these addresses can be read in packs of `count`.
template <typename T, typename... Pointers>
bool CanPack(int64_t width, int count, Pointers... pointers) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  return width % count == 0 && (aligned(pointers) && ...);
}

// Blocks for `work` items at `per_block`; kernels stride over the rest.
inline unsigned Blocks(int64_t work, int64_t per_block) {
  return static_cast<unsigned>(
      std::min<int64_t>((work + per_block - 1) / per_block, int64_t{1} << 30));
}

// Calls `call` with a null T* for the element type.
template <typename F>
cudaError_t DispatchElement(Element element, F&& call) {
  switch (element) {
    case Element::kFloat64:
      return call(static_cast<double*>(nullptr));
    case Element::kFloat32:
      return call(static_cast<float*>(nullptr));
    case Element::kBFloat16:
      return call(static_cast<__nv_bfloat16*>(nullptr));
    case Element::kFloat16:
      return call(static_cast<__half*>(nullptr));
  }
  return cudaErrorInvalidValue;
}

}  // namespace lemo::kernels::cuda
