// 16 bytes a thread and array; what is left over past the last whole pack goes one by one.
#include "kernels/cuda_device.cuh"
#include "kernels/swiglu/swiglu_cuda.cuh"

namespace lemo::kernels::cuda {
namespace {

constexpr int kBlock = 256;

template <typename T>
__device__ __forceinline__ T Forward(T gate, T up) {
  const Wide<T> g = Load(gate);
  return Round<T>(g / (1 + Exp(-g)) * Load(up));
}

template <typename T>
__device__ __forceinline__ void Backward(T dh, T gate, T up, T* dgate, T* dup) {
  const Wide<T> g = Load(gate);
  const Wide<T> d = Load(dh);
  const Wide<T> sigmoid = 1 / (1 + Exp(-g));
  *dgate = Round<T>(d * Load(up) * sigmoid * (1 + g * (1 - sigmoid)));
  *dup = Round<T>(d * g * sigmoid);
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kBlock)
    ForwardKernel(const T* __restrict__ gate, const T* __restrict__ up, int64_t count,
                  T* __restrict__ h) {
  const int64_t step = int64_t{gridDim.x} * kBlock;
  const int64_t thread = int64_t{blockIdx.x} * kBlock + threadIdx.x;
  for (int64_t p = thread; p < count / kCount; p += step) {
    const auto gates = LoadPack<kCount>(gate + p * kCount);
    const auto ups = LoadPack<kCount>(up + p * kCount);
    Pack<T, kCount> out;
    for (int i = 0; i < kCount; ++i) out.values[i] = Forward(gates.values[i], ups.values[i]);
    StorePack(h + p * kCount, out);
  }
  for (int64_t i = count / kCount * kCount + thread; i < count; i += step) {
    h[i] = Forward(gate[i], up[i]);
  }
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kBlock)
    BackwardKernel(const T* __restrict__ dh, const T* __restrict__ gate, const T* __restrict__ up,
                   int64_t count, T* __restrict__ dgate, T* __restrict__ dup) {
  const int64_t step = int64_t{gridDim.x} * kBlock;
  const int64_t thread = int64_t{blockIdx.x} * kBlock + threadIdx.x;
  for (int64_t p = thread; p < count / kCount; p += step) {
    const auto grads = LoadPack<kCount>(dh + p * kCount);
    const auto gates = LoadPack<kCount>(gate + p * kCount);
    const auto ups = LoadPack<kCount>(up + p * kCount);
    Pack<T, kCount> gate_out;
    Pack<T, kCount> up_out;
    for (int i = 0; i < kCount; ++i) {
      Backward(grads.values[i], gates.values[i], ups.values[i], &gate_out.values[i],
               &up_out.values[i]);
    }
    StorePack(dgate + p * kCount, gate_out);
    StorePack(dup + p * kCount, up_out);
  }
  for (int64_t i = count / kCount * kCount + thread; i < count; i += step) {
    Backward(dh[i], gate[i], up[i], dgate + i, dup + i);
  }
}

}  // namespace

cudaError_t LaunchSwiGlu(Element element, const void* gate, const void* up, int64_t count, void* h,
                         cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  return DispatchElement(element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int kCount = kPackElements<T>;
    const auto launch = [&](auto kernel, int64_t threads) {
      kernel<<<Blocks(threads, kBlock), kBlock, 0, stream>>>(
          static_cast<const T*>(gate), static_cast<const T*>(up), count, static_cast<T*>(h));
    };
    if (CanPack<T>(0, kCount, gate, up, h)) {
      launch(ForwardKernel<T, kCount>, (count + kCount - 1) / kCount);
    } else {
      launch(ForwardKernel<T, 1>, count);
    }
    return cudaGetLastError();
  });
}

cudaError_t LaunchSwiGluBackward(Element element, const void* dh, const void* gate, const void* up,
                                 int64_t count, void* dgate, void* dup, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  return DispatchElement(element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int kCount = kPackElements<T>;
    const auto launch = [&](auto kernel, int64_t threads) {
      kernel<<<Blocks(threads, kBlock), kBlock, 0, stream>>>(
          static_cast<const T*>(dh), static_cast<const T*>(gate), static_cast<const T*>(up), count,
          static_cast<T*>(dgate), static_cast<T*>(dup));
    };
    if (CanPack<T>(0, kCount, dh, gate, up, dgate, dup)) {
      launch(BackwardKernel<T, kCount>, (count + kCount - 1) / kCount);
    } else {
      launch(BackwardKernel<T, 1>, count);
    }
    return cudaGetLastError();
  });
}

}  // namespace lemo::kernels::cuda
