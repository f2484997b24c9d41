// Adds to the reference: two scans in place of the sums over pairs, one from the last block down
// and one from the first up; threads over documents.
#include <ATen/ATen.h>

#include "kernels/block_scan/block_scan_internal.h"
#include "kernels/cpu_simd.h"

namespace lemo::kernels::cpu {
namespace {

// One document's blocks. sum [width] is scratch.
template <typename T>
LEMO_INLINE void ForwardDocument(const T* q, const T* k, int64_t blocks, int64_t width,
                                 bool symmetric, double* sum, double* result) {
  std::fill(sum, sum + width, 0.0);
  for (int64_t n = blocks - 1; n >= 0; --n) {
    const T* query = q + n * width;
    const T* key = k + n * width;
    double dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t j = 0; j < width; ++j) {
      sum[j] += Load(query[j]);
      dot += sum[j] * Load(key[j]);
    }
    result[n] = dot;
  }
  if (!symmetric) return;
  std::fill(sum, sum + width, 0.0);
  for (int64_t n = 0; n < blocks; ++n) {
    const T* query = q + n * width;
    const T* key = k + n * width;
    double dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t j = 0; j < width; ++j) {
      dot += sum[j] * Load(query[j]);
      sum[j] += Load(key[j]);
    }
    result[n] += dot;
  }
}

// `grad` [blocks]: the gradient times the factor of the block. From the terms
// w_n k_n . Q_n (Q_n includes n) and w_n q_n . K_n (K_n does not):
//   dq_n = sum_{m<=n} w_m k_m + w_n K_n        dk_n = w_n Q_n + sum_{m>n} w_m q_m
template <typename T>
LEMO_INLINE void BackwardDocument(const double* grad, const T* q, const T* k, int64_t blocks,
                                  int64_t width, bool symmetric, double* sum, double* weighted,
                                  T* dq, T* dk) {
  std::fill(sum, sum + width, 0.0);
  std::fill(weighted, weighted + width, 0.0);
  for (int64_t n = blocks - 1; n >= 0; --n) {
    const T* query = q + n * width;
    T* to = dk + n * width;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      const double value = Load(query[j]);
      sum[j] += value;
      to[j] = Round<T>(static_cast<Wide<T>>(grad[n] * sum[j] + weighted[j]));
      weighted[j] += symmetric ? grad[n] * value : 0.0;
    }
  }
  std::fill(sum, sum + width, 0.0);
  std::fill(weighted, weighted + width, 0.0);
  for (int64_t n = 0; n < blocks; ++n) {
    const T* key = k + n * width;
    T* to = dq + n * width;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      const double value = Load(key[j]);
      weighted[j] += grad[n] * value;
      to[j] = Round<T>(static_cast<Wide<T>>(weighted[j] + grad[n] * sum[j]));
      sum[j] += symmetric ? value : 0.0;
    }
  }
}

#define LEMO_BLOCK_SCAN_CLONES(T)                                                              \
  LEMO_SIMD_CLONES void Forward(const T* q, const T* k, int64_t blocks, int64_t width,         \
                                bool symmetric, double* sum, double* result) {                 \
    ForwardDocument<T>(q, k, blocks, width, symmetric, sum, result);                           \
  }                                                                                            \
  LEMO_SIMD_CLONES void Backward(const double* grad, const T* q, const T* k, int64_t blocks,   \
                                 int64_t width, bool symmetric, double* sum, double* weighted, \
                                 T* dq, T* dk) {                                               \
    BackwardDocument<T>(grad, q, k, blocks, width, symmetric, sum, weighted, dq, dk);          \
  }
LEMO_BLOCK_SCAN_CLONES(double)
LEMO_BLOCK_SCAN_CLONES(float)
LEMO_BLOCK_SCAN_CLONES(c10::BFloat16)
#undef LEMO_BLOCK_SCAN_CLONES

// Calls `call(element, first, last)` in parallel for every document.
template <typename F>
void ForDocuments(const at::Tensor& q, const at::Tensor& documents, F&& call) {
  const std::vector<int64_t> list = [&] {
    const at::Tensor wide = documents.to(at::kLong).contiguous();
    return std::vector<int64_t>(wide.const_data_ptr<int64_t>(),
                                wide.const_data_ptr<int64_t>() + wide.numel());
  }();
  const auto count = static_cast<int64_t>(list.size()) - 1;
  CheckDocuments("block_informativeness", list.data(), count, q.size(0));
  const int64_t grain = GrainRows(q.numel() / std::max<int64_t>(1, count));
  DispatchType(q.scalar_type(), [&](auto element) {
    at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t d = begin; d < end; ++d) call(element, list[d], list[d + 1]);
    });
  });
}

}  // namespace

at::Tensor BlockInformativeness(const at::Tensor& q_any, const at::Tensor& k_any,
                                const at::Tensor& documents, int64_t combine) {
  CheckBlockInformativeness(q_any, k_any, documents, combine);
  const at::Tensor q = q_any.contiguous();
  const at::Tensor k = k_any.contiguous();
  const int64_t width = q.size(1);
  const bool symmetric = static_cast<Combine>(combine) == Combine::kSymmetric;
  at::Tensor result = at::empty({q.size(0)}, q.options().dtype(WideType(q.scalar_type())));
  ForDocuments(q, documents, [&](auto element, int64_t first, int64_t last) {
    using T = decltype(element);
    std::vector<double> sum(width);
    std::vector<double> sums(last - first);
    Forward(q.const_data_ptr<T>() + first * width, k.const_data_ptr<T>() + first * width,
            last - first, width, symmetric, sum.data(), sums.data());
    auto* to = result.mutable_data_ptr<Wide<T>>() + first;
    for (int64_t n = 0; n < last - first; ++n) {
      to[n] = static_cast<Wide<T>>(sums[n] * CombineFactor(combine, n, last - first));
    }
  });
  return result;
}

std::tuple<at::Tensor, at::Tensor> BlockInformativenessBackward(const at::Tensor& di_any,
                                                                const at::Tensor& q_any,
                                                                const at::Tensor& k_any,
                                                                const at::Tensor& documents,
                                                                int64_t combine) {
  CheckBlockInformativenessBackward(di_any, q_any, k_any, documents, combine);
  const at::Tensor di = di_any.contiguous();
  const at::Tensor q = q_any.contiguous();
  const at::Tensor k = k_any.contiguous();
  const int64_t width = q.size(1);
  const bool symmetric = static_cast<Combine>(combine) == Combine::kSymmetric;
  at::Tensor dq = at::empty(q.sizes(), q.options());
  at::Tensor dk = at::empty(k.sizes(), k.options());
  ForDocuments(q, documents, [&](auto element, int64_t first, int64_t last) {
    using T = decltype(element);
    std::vector<double> scratch(2 * width);
    std::vector<double> grads(last - first);
    for (int64_t n = 0; n < last - first; ++n) {
      grads[n] = di.const_data_ptr<Wide<T>>()[first + n] * CombineFactor(combine, n, last - first);
    }
    Backward(grads.data(), q.const_data_ptr<T>() + first * width,
             k.const_data_ptr<T>() + first * width, last - first, width, symmetric, scratch.data(),
             scratch.data() + width, dq.mutable_data_ptr<T>() + first * width,
             dk.mutable_data_ptr<T>() + first * width);
  });
  return {dq, dk};
}

}  // namespace lemo::kernels::cpu
