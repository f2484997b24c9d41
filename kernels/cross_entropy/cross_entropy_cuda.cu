// A block a row. Each thread keeps the maximum, its index and the sum of its packs (rescaled when
// the maximum grows), the block merges them, and a second pass, mostly from L2, writes the
// gradient.
#include <cmath>

#include "kernels/cross_entropy/cross_entropy_cuda.cuh"
#include "kernels/cuda_device.cuh"

namespace lemo::kernels::cuda {
namespace {

constexpr int kBlock = 512;
constexpr int64_t kIgnore = -100;

// Maximum (NaN ignored), its lowest index, and the sum of exp(z - maximum), which NaN makes NaN.
// While everything is -Inf the sum is taken around 0: it stays 0 unless there is a NaN.
template <typename W>
struct Partial {
  W largest;
  int64_t index;
  W sum;
};

template <typename W>
__device__ __forceinline__ Partial<W> Merge(Partial<W> a, Partial<W> b) {
  const W largest = a.largest > b.largest ? a.largest : b.largest;
  const int64_t a_index = a.largest == largest ? a.index : INT64_MAX;
  const int64_t b_index = b.largest == largest ? b.index : INT64_MAX;
  // Not through exp(0) where the maxima agree: both may be infinite.
  const W a_sum = a.largest == largest ? a.sum : a.sum * Exp(a.largest - largest);
  const W b_sum = b.largest == largest ? b.sum : b.sum * Exp(b.largest - largest);
  return {largest, a_index < b_index ? a_index : b_index, a_sum + b_sum};
}

template <typename W>
__device__ __forceinline__ Partial<W> WarpMerge(Partial<W> partial) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    Partial<W> other;
    other.largest = __shfl_xor_sync(0xffffffffu, partial.largest, offset);
    other.index = __shfl_xor_sync(0xffffffffu, static_cast<long long>(partial.index), offset);
    other.sum = __shfl_xor_sync(0xffffffffu, partial.sum, offset);
    partial = Merge(partial, other);
  }
  return partial;
}

// What a thread makes of its packs of a row.
template <typename T, int kCount>
__device__ __forceinline__ Partial<Wide<T>> ThreadPartial(const T* z, int64_t vocabulary) {
  using W = Wide<T>;
  Partial<W> partial{static_cast<W>(-INFINITY), INT64_MAX, W{0}};
  for (int64_t j = int64_t{threadIdx.x} * kCount; j < vocabulary; j += int64_t{kBlock} * kCount) {
    const auto pack = LoadPack<kCount>(z + j);
    W largest = partial.largest;
    int64_t index = partial.index;
    for (int i = 0; i < kCount; ++i) {
      const W value = Load(pack.values[i]);
      if (value > largest) {
        largest = value;
        index = j + i;
      }
    }
    if (largest != partial.largest) {
      partial.sum *= Exp(partial.largest - largest);
      partial.largest = largest;
      partial.index = index;
    }
    const W shift = largest == static_cast<W>(-INFINITY) ? W{0} : largest;
    for (int i = 0; i < kCount; ++i) partial.sum += Exp(Load(pack.values[i]) - shift);
  }
  return partial;
}

// The threads' put together, for all of them. Whatever was read of the row before is read by all
// threads when it returns.
template <typename W>
__device__ __forceinline__ Partial<W> BlockMerge(Partial<W> partial, Partial<W>* warps) {
  partial = WarpMerge(partial);
  __syncthreads();  // the last row's readers of `warps` are done
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = partial;
  __syncthreads();
  partial = warps[0];
  for (int w = 1; w < kBlock / kWarp; ++w) partial = Merge(partial, warps[w]);
  return partial;
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kBlock)
    CrossEntropyKernel(T* __restrict__ logits, IndexArray labels, double scale, bool want_gradient,
                       int64_t rows, int64_t vocabulary, Wide<T>* __restrict__ loss,
                       bool* __restrict__ correct) {
  using W = Wide<T>;
  __shared__ Partial<W> warps[kBlock / kWarp];
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    T* z = logits + row * vocabulary;
    const int64_t label = IndexAt(labels, row);
    const bool valid = label >= 0 && label < vocabulary;
    if (!valid) {
      // A wrong label cannot be reported from here: NaN makes it show.
      const W fill = label == kIgnore ? W{0} : static_cast<W>(NAN);
      if (threadIdx.x == 0) {
        loss[row] = fill;
        correct[row] = false;
      }
      if (want_gradient) {
        for (int64_t j = threadIdx.x; j < vocabulary; j += kBlock) z[j] = Round<T>(fill);
      }
      continue;
    }

    const Partial<W> own = ThreadPartial<T, kCount>(z, vocabulary);
    const W label_logit = Load(z[label]);
    // Every thread has read the label's logit before the gradient covers it.
    const Partial<W> partial = BlockMerge(own, warps);

    if (threadIdx.x == 0) {
      const W row_loss = static_cast<W>(log(static_cast<double>(partial.sum)) +
                                        (static_cast<double>(partial.largest) - label_logit));
      loss[row] = row_loss;
      correct[row] = partial.index == label && !isnan(row_loss);
    }
    if (!want_gradient) continue;
    const W factor = static_cast<W>(scale / partial.sum);
    const W at_label = static_cast<W>(
        (exp(static_cast<double>(label_logit) - partial.largest) / partial.sum - 1) * scale);
    for (int64_t j = int64_t{threadIdx.x} * kCount; j < vocabulary; j += int64_t{kBlock} * kCount) {
      auto pack = LoadPack<kCount>(z + j);
      for (int i = 0; i < kCount; ++i) {
        pack.values[i] = Round<T>(
            j + i == label ? at_label : Exp(Load(pack.values[i]) - partial.largest) * factor);
      }
      StorePack(z + j, pack);
    }
  }
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kBlock)
    StatisticsKernel(const T* __restrict__ logits, IndexArray labels, int64_t rows, int64_t columns,
                     double* __restrict__ statistics) {
  __shared__ Partial<Wide<T>> warps[kBlock / kWarp];
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* z = logits + row * columns;
    const Partial<Wide<T>> partial = BlockMerge(ThreadPartial<T, kCount>(z, columns), warps);
    if (threadIdx.x != 0) continue;
    const int64_t label = IndexAt(labels, row);
    statistics[row] = partial.largest;
    statistics[rows + row] = partial.sum;
    statistics[2 * rows + row] = label >= 0 && label < columns ? Load(z[label]) : Wide<T>{0};
    statistics[3 * rows + row] = partial.index < columns ? static_cast<double>(partial.index) : 0.0;
  }
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kBlock)
    GradientKernel(T* __restrict__ logits, IndexArray labels, const double* __restrict__ largest,
                   const double* __restrict__ total, double scale, int64_t rows, int64_t columns) {
  using W = Wide<T>;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    T* z = logits + row * columns;
    const int64_t label = IndexAt(labels, row);
    const W maximum = static_cast<W>(largest[row]);
    const W factor = static_cast<W>(scale / total[row]);
    for (int64_t j = int64_t{threadIdx.x} * kCount; j < columns; j += int64_t{kBlock} * kCount) {
      auto pack = LoadPack<kCount>(z + j);
      for (int i = 0; i < kCount; ++i) {
        const W value = Load(pack.values[i]);
        pack.values[i] =
            Round<T>(j + i == label
                         ? static_cast<W>(
                               (exp(static_cast<double>(value) - maximum) / total[row] - 1) * scale)
                         : Exp(value - maximum) * factor);
      }
      StorePack(z + j, pack);
    }
  }
}

}  // namespace

cudaError_t LaunchCrossEntropy(Element element, void* logits, IndexArray labels, double scale,
                               bool want_gradient, int64_t rows, int64_t vocabulary, void* loss,
                               bool* correct, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  return DispatchElement(element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int kCount = kPackElements<T>;
    const auto launch = [&](auto kernel) {
      kernel<<<Blocks(rows, 1), kBlock, 0, stream>>>(static_cast<T*>(logits), labels, scale,
                                                     want_gradient, rows, vocabulary,
                                                     static_cast<Wide<T>*>(loss), correct);
    };
    if (CanPack<T>(vocabulary, kCount, logits)) {
      launch(CrossEntropyKernel<T, kCount>);
    } else {
      launch(CrossEntropyKernel<T, 1>);
    }
    return cudaGetLastError();
  });
}

cudaError_t LaunchCrossEntropyStatistics(Element element, const void* logits, IndexArray labels,
                                         int64_t rows, int64_t columns, double* statistics,
                                         cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  return DispatchElement(element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int kCount = kPackElements<T>;
    const auto launch = [&](auto kernel) {
      kernel<<<Blocks(rows, 1), kBlock, 0, stream>>>(static_cast<const T*>(logits), labels, rows,
                                                     columns, statistics);
    };
    if (CanPack<T>(columns, kCount, logits)) {
      launch(StatisticsKernel<T, kCount>);
    } else {
      launch(StatisticsKernel<T, 1>);
    }
    return cudaGetLastError();
  });
}

cudaError_t LaunchCrossEntropyGradient(Element element, void* logits, IndexArray labels,
                                       const double* largest, const double* total, double scale,
                                       int64_t rows, int64_t columns, cudaStream_t stream) {
  if (rows == 0 || columns == 0) return cudaSuccess;
  return DispatchElement(element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int kCount = kPackElements<T>;
    const auto launch = [&](auto kernel) {
      kernel<<<Blocks(rows, 1), kBlock, 0, stream>>>(static_cast<T*>(logits), labels, largest,
                                                     total, scale, rows, columns);
    };
    if (CanPack<T>(columns, kCount, logits)) {
      launch(GradientKernel<T, kCount>);
    } else {
      launch(GradientKernel<T, 1>);
    }
    return cudaGetLastError();
  });
}

}  // namespace lemo::kernels::cuda
