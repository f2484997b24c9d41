// Adds to the reference: vector loops and threads over tokens; a token's tables stay in cache for
// all of its heads.
#include <ATen/ATen.h>

#include "kernels/cpu_simd.h"
#include "kernels/rope/rope_internal.h"

namespace lemo::kernels::cpu {
namespace {

template <typename T>
LEMO_INLINE void RotateRows(const T* x, const Wide<T>* cos, const Wide<T>* sin, Wide<T> sign,
                            int64_t rows, int64_t heads, int64_t half, T* y) {
  for (int64_t n = 0; n < rows; ++n, cos += half, sin += half) {
    for (int64_t a = 0; a < heads; ++a, x += 2 * half, y += 2 * half) {
#pragma omp simd
      for (int64_t i = 0; i < half; ++i) {
        const Wide<T> first = Load(x[i]);
        const Wide<T> second = Load(x[i + half]);
        const Wide<T> s = sign * sin[i];
        y[i] = Round<T>(first * cos[i] - second * s);
        y[i + half] = Round<T>(second * cos[i] + first * s);
      }
    }
  }
}

#define LEMO_ROPE_CLONES(T)                                                                      \
  LEMO_SIMD_CLONES void Rotate(const T* x, const Wide<T>* cos, const Wide<T>* sin, Wide<T> sign, \
                               int64_t rows, int64_t heads, int64_t half, T* y) {                \
    RotateRows<T>(x, cos, sin, sign, rows, heads, half, y);                                      \
  }
LEMO_ROPE_CLONES(double)
LEMO_ROPE_CLONES(float)
LEMO_ROPE_CLONES(c10::BFloat16)
#undef LEMO_ROPE_CLONES

}  // namespace

at::Tensor Rope(const at::Tensor& x_any, const at::Tensor& cos_any, const at::Tensor& sin_any,
                bool inverse) {
  CheckRope(x_any, cos_any, sin_any);
  const at::Tensor x = x_any.contiguous();
  const at::Tensor cos = cos_any.contiguous();
  const at::Tensor sin = sin_any.contiguous();
  const int64_t heads = x.size(1);
  const int64_t half = x.size(2) / 2;
  const int64_t width = heads * 2 * half;
  at::Tensor y = at::empty(x.sizes(), x.options());
  DispatchType(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const T* x_data = x.const_data_ptr<T>();
    const auto* cos_data = cos.const_data_ptr<Wide<T>>();
    const auto* sin_data = sin.const_data_ptr<Wide<T>>();
    T* y_data = y.mutable_data_ptr<T>();
    at::parallel_for(0, x.size(0), GrainRows(width), [&](int64_t begin, int64_t end) {
      Rotate(x_data + begin * width, cos_data + begin * half, sin_data + begin * half,
             static_cast<Wide<T>>(inverse ? -1 : 1), end - begin, heads, half,
             y_data + begin * width);
    });
  });
  return y;
}

}  // namespace lemo::kernels::cpu
