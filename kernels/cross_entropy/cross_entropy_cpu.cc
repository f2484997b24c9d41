// Adds to the reference: one pass for maximum and sum (block by block, the sum rescaled when a
// block raises the maximum), one pass for the gradient, vector loops with a polynomial exp, threads
// over rows.
//
// The gradient pass recomputes exp rather than keeping it: a row of fp32 temporaries would cost as
// much cache as it saves, and bf16 logits have no room for them. Sums of a block are fp32, their
// total is double: the error of log(sum) stays near 2^-23 for any vocabulary.
#include <ATen/ATen.h>

#include <cmath>

#include "kernels/cpu_simd.h"
#include "kernels/cross_entropy/cross_entropy_internal.h"

namespace lemo::kernels::cpu {
namespace {

constexpr int64_t kBlock = 1024;
constexpr int64_t kLanes = 32;

// The maximum, ignoring NaN. In lanes of its own because GCC does not vectorise a maximum that must
// heed NaN as a reduction.
template <typename T>
LEMO_INLINE Wide<T> BlockMax(const T* z, int64_t count) {
  constexpr Wide<T> kLowest = -std::numeric_limits<Wide<T>>::infinity();
  Wide<T> lanes[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) lanes[l] = kLowest;
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) {
      const Wide<T> value = Load(z[j + l]);
      lanes[l] = value > lanes[l] ? value : lanes[l];
    }
  }
  Wide<T> result = kLowest;
  for (int64_t l = 0; l < kLanes; ++l) result = lanes[l] > result ? lanes[l] : result;
  for (; j < count; ++j) result = Load(z[j]) > result ? Load(z[j]) : result;
  return result;
}

template <typename W>
struct RowSum {
  W largest;
  double total;  // of exp(z - largest)
};

template <typename T>
LEMO_INLINE RowSum<Wide<T>> Sum(const T* z, int64_t vocabulary) {
  using W = Wide<T>;
  constexpr W kLowest = -std::numeric_limits<W>::infinity();
  W largest = kLowest;
  double total = 0;
  for (int64_t begin = 0; begin < vocabulary; begin += kBlock) {
    const int64_t count = std::min(kBlock, vocabulary - begin);
    const T* block = z + begin;
    const W block_largest = BlockMax(block, count);
    if (block_largest > largest) {
      if (total != 0) total *= std::exp(static_cast<double>(largest) - block_largest);
      largest = block_largest;
    }
    // While everything is -Inf the sum must stay 0, or become NaN if a NaN is among it.
    const W shift = largest == kLowest ? W{0} : largest;
    W sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < count; ++j) sum += Exp(Load(block[j]) - shift);
    total += sum;
  }
  return {largest, total};
}

// `label` outside the row: none.
template <typename T>
LEMO_INLINE void Softmax(T* z, int64_t vocabulary, int64_t label, Wide<T> largest, double total,
                         double scale) {
  using W = Wide<T>;
  const bool here = label >= 0 && label < vocabulary;
  const W label_logit = here ? Load(z[label]) : W{0};
  const W factor = static_cast<W>(scale / total);
#pragma omp simd
  for (int64_t j = 0; j < vocabulary; ++j) z[j] = Round<T>(Exp(Load(z[j]) - largest) * factor);
  if (!here) return;
  // At the label: (softmax - 1) * scale, from what was there before the loop above.
  const double probability = std::exp(static_cast<double>(label_logit) - largest) / total;
  z[label] = Round<T>(static_cast<W>((probability - 1) * scale));
}

template <typename T>
LEMO_INLINE void Row(T* z, int64_t vocabulary, int64_t label, double scale, bool want_gradient,
                     Wide<T>* loss, bool* correct) {
  using W = Wide<T>;
  const auto [largest, total] = Sum(z, vocabulary);
  const W label_logit = Load(z[label]);
  *loss = static_cast<W>(std::log(total) + (static_cast<double>(largest) - label_logit));
  *correct = label_logit == largest && !std::isnan(*loss);
  for (int64_t j = 0; *correct && j < label; ++j) *correct = Load(z[j]) != largest;
  if (want_gradient) Softmax(z, vocabulary, label, largest, total, scale);
}

// The four statistics of a row, `stride` apart.
template <typename T>
LEMO_INLINE void Describe(const T* z, int64_t columns, int64_t label, int64_t stride, double* out) {
  const auto [largest, total] = Sum(z, columns);
  int64_t index = 0;
  while (index < columns && Load(z[index]) != largest) ++index;
  out[0] = largest;
  out[stride] = total;
  out[2 * stride] = label >= 0 && label < columns ? static_cast<double>(Load(z[label])) : 0.0;
  out[3 * stride] = index < columns ? static_cast<double>(index) : 0.0;
}

#define LEMO_CROSS_ENTROPY_CLONES(T)                                                            \
  LEMO_SIMD_CLONES void LabelledRow(T* z, int64_t vocabulary, int64_t label, double scale,      \
                                    bool want_gradient, Wide<T>* loss, bool* correct) {         \
    Row<T>(z, vocabulary, label, scale, want_gradient, loss, correct);                          \
  }                                                                                             \
  LEMO_SIMD_CLONES void DescribeRow(const T* z, int64_t columns, int64_t label, int64_t stride, \
                                    double* out) {                                              \
    Describe<T>(z, columns, label, stride, out);                                                \
  }                                                                                             \
  LEMO_SIMD_CLONES void SoftmaxRow(T* z, int64_t columns, int64_t label, Wide<T> largest,       \
                                   double total, double scale) {                                \
    Softmax<T>(z, columns, label, largest, total, scale);                                       \
  }
LEMO_CROSS_ENTROPY_CLONES(double)
LEMO_CROSS_ENTROPY_CLONES(float)
LEMO_CROSS_ENTROPY_CLONES(c10::BFloat16)
#undef LEMO_CROSS_ENTROPY_CLONES

}  // namespace

std::tuple<at::Tensor, at::Tensor> CrossEntropy(const at::Tensor& logits,
                                                const at::Tensor& labels_any, double scale,
                                                bool want_gradient) {
  CheckCrossEntropy(logits, labels_any);
  const at::Tensor labels = labels_any.contiguous();
  const int64_t rows = logits.size(0);
  const int64_t vocabulary = logits.size(1);
  at::Tensor loss = at::zeros({rows}, logits.options().dtype(WideType(logits.scalar_type())));
  at::Tensor correct = at::zeros({rows}, logits.options().dtype(at::kBool));
  DispatchIndex(labels.scalar_type(), [&](auto index_element) {
    using Index = decltype(index_element);
    const Index* label_data = labels.const_data_ptr<Index>();
    CheckLabels(label_data, rows, vocabulary);
    DispatchType(logits.scalar_type(), [&](auto element) {
      using T = decltype(element);
      T* z = logits.mutable_data_ptr<T>();
      auto* loss_data = loss.mutable_data_ptr<Wide<T>>();
      bool* correct_data = correct.mutable_data_ptr<bool>();
      at::parallel_for(0, rows, GrainRows(vocabulary * 4), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          T* row = z + r * vocabulary;
          if (label_data[r] == kIgnoreLabel) {
            if (want_gradient) std::fill(row, row + vocabulary, Round<T>(0));
            continue;
          }
          LabelledRow(row, vocabulary, label_data[r], scale, want_gradient, loss_data + r,
                      correct_data + r);
        }
      });
    });
  });
  return {loss, correct};
}

at::Tensor Statistics(const at::Tensor& logits, const at::Tensor& labels_any) {
  CheckCrossEntropyPart(logits, labels_any);
  const at::Tensor labels = labels_any.contiguous();
  const int64_t rows = logits.size(0);
  const int64_t columns = logits.size(1);
  at::Tensor result = at::empty({4, rows}, logits.options().dtype(at::kDouble));
  double* out = result.mutable_data_ptr<double>();
  DispatchIndex(labels.scalar_type(), [&](auto index_element) {
    const auto* label_data = labels.const_data_ptr<decltype(index_element)>();
    DispatchType(logits.scalar_type(), [&](auto element) {
      using T = decltype(element);
      const T* z = logits.const_data_ptr<T>();
      at::parallel_for(0, rows, GrainRows(columns * 4), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          DescribeRow(z + r * columns, columns, label_data[r], rows, out + r);
        }
      });
    });
  });
  return result;
}

void Gradient(const at::Tensor& logits, const at::Tensor& labels_any, const at::Tensor& largest_any,
              const at::Tensor& total_any, double scale) {
  CheckCrossEntropyPart(logits, labels_any);
  CheckRowValues("largest", largest_any, logits);
  CheckRowValues("total", total_any, logits);
  const at::Tensor labels = labels_any.contiguous();
  const at::Tensor largest = largest_any.contiguous(), total = total_any.contiguous();
  const double* maxima = largest.const_data_ptr<double>();
  const double* totals = total.const_data_ptr<double>();
  const int64_t columns = logits.size(1);
  DispatchIndex(labels.scalar_type(), [&](auto index_element) {
    const auto* label_data = labels.const_data_ptr<decltype(index_element)>();
    DispatchType(logits.scalar_type(), [&](auto element) {
      using T = decltype(element);
      T* z = logits.mutable_data_ptr<T>();
      const auto rows = [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          SoftmaxRow(z + r * columns, columns, label_data[r], static_cast<Wide<T>>(maxima[r]),
                     totals[r], scale);
        }
      };
      at::parallel_for(0, logits.size(0), GrainRows(columns * 4), rows);
    });
  });
}

}  // namespace lemo::kernels::cpu
