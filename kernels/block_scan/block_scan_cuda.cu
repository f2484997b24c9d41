// A thread block takes a document and 32 columns; each of its kLanes warps a run of neighbouring
// blocks. First the sums of the runs, then what comes before and after each run, then the run again
// with that to start from: a scan as deep as a run, not as the document.
#include <cassert>

#include "kernels/block_scan/block_scan_cuda.cuh"
#include "kernels/cuda_device.cuh"

namespace lemo::kernels::cuda {
namespace {

constexpr int kLanes = 16;
constexpr int kSymmetric = 0;
constexpr int kColumn = 1;

struct Run {
  int64_t first = 0;  // of the document
  int64_t last = 0;
  int64_t begin = 0;  // of the warp
  int64_t end = 0;
};

__device__ __forceinline__ Run WarpRun(IndexArray documents, int64_t blocks) {
  Run run;
  run.first = IndexAt(documents, blockIdx.x);
  run.last = IndexAt(documents, int64_t{blockIdx.x} + 1);
  assert(run.first >= 0 && run.first <= run.last && run.last <= blocks &&
         "documents must ascend in [0, B]");
  if (run.first < 0 || run.last > blocks) run.first = run.last = 0;
  const int64_t size = (run.last - run.first + kLanes - 1) / kLanes;
  run.begin = min(run.last, run.first + threadIdx.y * size);
  run.end = min(run.last, run.begin + size);
  return run;
}

template <typename W>
__device__ __forceinline__ W Factor(const Run& run, int combine, int64_t n) {
  if (combine == kColumn) return 1;
  return W{1} / static_cast<W>(combine == kSymmetric ? run.last - run.first : run.last - n);
}

// The sum of the values of the warps above (kAfter) or below this one, column by column.
template <bool kAfter, typename W>
__device__ W SumOfOthers(W value) {
  __shared__ W sums[kLanes][kWarp];
  __syncthreads();  // the last call's readers are done
  sums[threadIdx.y][threadIdx.x] = value;
  __syncthreads();
  W sum = 0;
  const int lane = threadIdx.y;
  if constexpr (kAfter) {
    for (int l = kLanes - 1; l > lane; --l) sum += sums[l][threadIdx.x];
  } else {
    for (int l = 0; l < lane; ++l) sum += sums[l][threadIdx.x];
  }
  return sum;
}

template <typename T>
__global__ void __launch_bounds__(kWarp* kLanes)
    ForwardKernel(const T* __restrict__ q, const T* __restrict__ k, int64_t blocks, int64_t width,
                  IndexArray documents, int combine, Wide<T>* __restrict__ parts) {
  using W = Wide<T>;
  const Run run = WarpRun(documents, blocks);
  const int64_t column = int64_t{blockIdx.y} * kWarp + threadIdx.x;
  const auto at = [&](const T* data, int64_t n) {
    return column < width ? Load(data[n * width + column]) : W{0};
  };
  W queries = 0;
  W keys = 0;
  for (int64_t n = run.begin; n < run.end; ++n) {
    queries += at(q, n);
    keys += at(k, n);
  }
  queries = SumOfOthers<true>(queries);
  keys = SumOfOthers<false>(keys);
  W* out = parts + int64_t{blockIdx.y} * blocks;
  for (int64_t n = run.end - 1; n >= run.begin; --n) {
    queries += at(q, n);
    const W sum = WarpSum(at(k, n) * queries);
    if (threadIdx.x == 0) out[n] = sum * Factor<W>(run, combine, n);
  }
  if (combine != kSymmetric) return;
  for (int64_t n = run.begin; n < run.end; ++n) {
    const W sum = WarpSum(at(q, n) * keys);
    if (threadIdx.x == 0) out[n] += sum * Factor<W>(run, combine, n);
    keys += at(k, n);
  }
}

// With w_n the gradient times the factor: dq_n = sum_{m<=n} w_m k_m + w_n K_n and
// dk_n = w_n Q_n + sum_{m>n} w_m q_m; the second terms and K only where symmetric.
template <typename T>
__global__ void __launch_bounds__(kWarp* kLanes)
    BackwardKernel(const Wide<T>* __restrict__ di, const T* __restrict__ q, const T* __restrict__ k,
                   int64_t blocks, int64_t width, IndexArray documents, int combine,
                   T* __restrict__ dq, T* __restrict__ dk) {
  using W = Wide<T>;
  const Run run = WarpRun(documents, blocks);
  const int64_t column = int64_t{blockIdx.y} * kWarp + threadIdx.x;
  const bool symmetric = combine == kSymmetric;
  const auto at = [&](const T* data, int64_t n) {
    return column < width ? Load(data[n * width + column]) : W{0};
  };
  const auto weight = [&](int64_t n) { return di[n] * Factor<W>(run, combine, n); };
  W queries = 0;
  W weighted_queries = 0;
  W keys = 0;
  W weighted_keys = 0;
  for (int64_t n = run.begin; n < run.end; ++n) {
    queries += at(q, n);
    keys += at(k, n);
    weighted_queries += weight(n) * at(q, n);
    weighted_keys += weight(n) * at(k, n);
  }
  queries = SumOfOthers<true>(queries);
  weighted_queries = SumOfOthers<true>(weighted_queries);
  keys = SumOfOthers<false>(keys);
  weighted_keys = SumOfOthers<false>(weighted_keys);
  if (column >= width) return;
  for (int64_t n = run.end - 1; n >= run.begin; --n) {
    queries += at(q, n);
    dk[n * width + column] = Round<T>(weight(n) * queries + (symmetric ? weighted_queries : W{0}));
    weighted_queries += weight(n) * at(q, n);
  }
  for (int64_t n = run.begin; n < run.end; ++n) {
    weighted_keys += weight(n) * at(k, n);
    dq[n * width + column] = Round<T>(weighted_keys + (symmetric ? weight(n) * keys : W{0}));
    keys += at(k, n);
  }
}

dim3 Grid(int64_t documents, int64_t width) {
  return dim3(static_cast<unsigned>(documents), static_cast<unsigned>(InformativenessParts(width)));
}

}  // namespace

int64_t InformativenessParts(int64_t width) { return (width + kWarp - 1) / kWarp; }

cudaError_t LaunchBlockInformativeness(Element element, const void* q, const void* k,
                                       int64_t blocks, int64_t width, IndexArray documents,
                                       int64_t document_count, int combine, void* parts,
                                       cudaStream_t stream) {
  if (blocks == 0 || width == 0 || document_count == 0) return cudaSuccess;
  return DispatchElement(element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    ForwardKernel<T><<<Grid(document_count, width), dim3(kWarp, kLanes), 0, stream>>>(
        static_cast<const T*>(q), static_cast<const T*>(k), blocks, width, documents, combine,
        static_cast<Wide<T>*>(parts));
    return cudaGetLastError();
  });
}

cudaError_t LaunchBlockInformativenessBackward(Element element, const void* di, const void* q,
                                               const void* k, int64_t blocks, int64_t width,
                                               IndexArray documents, int64_t document_count,
                                               int combine, void* dq, void* dk,
                                               cudaStream_t stream) {
  if (blocks == 0 || width == 0 || document_count == 0) return cudaSuccess;
  return DispatchElement(element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    BackwardKernel<T><<<Grid(document_count, width), dim3(kWarp, kLanes), 0, stream>>>(
        static_cast<const Wide<T>*>(di), static_cast<const T*>(q), static_cast<const T*>(k), blocks,
        width, documents, combine, static_cast<T*>(dq), static_cast<T*>(dk));
    return cudaGetLastError();
  });
}

}  // namespace lemo::kernels::cuda
