// Adds to the reference: the words of a stretch of columns made in one vector loop and used in
// another, and threads over rows.
#include <ATen/ATen.h>

#include <cstring>

#include "kernels/cpu_simd.h"
#include "kernels/dropout/dropout_internal.h"
#include "kernels/dropout/dropout_mask.h"

namespace lemo::kernels::cpu {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the low half of a word is its first half");

constexpr int64_t kPairs = 128;

template <typename T>
LEMO_INLINE void MaskRow(const T* x, int64_t first, int64_t width, uint64_t state,
                         uint32_t threshold, Wide<T> scale, T* y) {
  // An odd first column takes the second half of its word, so that a stretch is one column shorter.
  const int64_t skipped = first % 2, step = 2 * kPairs - 2 * skipped;
  for (int64_t begin = 0; begin < width; begin += step) {
    const int64_t count = std::min(step, width - begin);
    uint64_t words[kPairs];
    uint32_t all_bits[2 * kPairs];
    const int64_t pair = (first + begin) / 2;
#pragma omp simd
    for (int64_t i = 0; i < kPairs; ++i) words[i] = DropoutWord(state, pair + i);
    std::memcpy(all_bits, words, sizeof(all_bits));
    const uint32_t* bits = all_bits + skipped;
    const T* from = x + begin;
    T* to = y + begin;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      const Wide<T> kept = Load(from[j]) * scale;
      to[j] = Round<T>(bits[j] < threshold ? Wide<T>{0} : kept);
    }
  }
}

#define LEMO_DROPOUT_CLONES(T)                                                         \
  LEMO_SIMD_CLONES void Mask(const T* x, int64_t first, int64_t width, uint64_t state, \
                             uint32_t threshold, Wide<T> scale, T* y) {                \
    MaskRow<T>(x, first, width, state, threshold, scale, y);                           \
  }
LEMO_DROPOUT_CLONES(double)
LEMO_DROPOUT_CLONES(float)
LEMO_DROPOUT_CLONES(c10::BFloat16)
#undef LEMO_DROPOUT_CLONES

}  // namespace

at::Tensor Dropout(const at::Tensor& x_any, double p, int64_t seed, int64_t stream,
                   const at::Tensor& row_ids_any, int64_t first_column) {
  CheckDropout(x_any, p, row_ids_any);
  const at::Tensor x = x_any.contiguous();
  const at::Tensor row_ids = row_ids_any.contiguous();
  const int64_t width = x.size(1);
  const uint32_t threshold = DropoutThreshold(p);
  at::Tensor y = at::empty(x.sizes(), x.options());
  DispatchIndex(row_ids.scalar_type(), [&](auto index_element) {
    using Index = decltype(index_element);
    const Index* ids = row_ids.const_data_ptr<Index>();
    DispatchType(x.scalar_type(), [&](auto element) {
      using T = decltype(element);
      const T* x_data = x.const_data_ptr<T>();
      T* y_data = y.mutable_data_ptr<T>();
      const auto scale = static_cast<Wide<T>>(1.0 / (1.0 - p));
      at::parallel_for(0, x.size(0), GrainRows(width), [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
          Mask(x_data + n * width, first_column, width, DropoutRowState(seed, stream, ids[n]),
               threshold, scale, y_data + n * width);
        }
      });
    });
  });
  return y;
}

}  // namespace lemo::kernels::cpu
