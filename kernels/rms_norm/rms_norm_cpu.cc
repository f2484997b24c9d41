// Adds to the reference: vector loops, threads over rows, and dweight in the same pass over the
// data as dx. The sum for dweight is made over a number of row chunks that depends on the shape
// alone, never on the threads, and the chunks are added in order.
#include <ATen/ATen.h>

#include <cmath>

#include "kernels/cpu_simd.h"
#include "kernels/rms_norm/rms_norm_internal.h"

namespace lemo::kernels::cpu {
namespace {

// Sums in fp32 run over at most this many terms a lane before they join a double.
constexpr int64_t kBlockColumns = 1024;
constexpr int64_t kBlockRows = 32;

template <typename T>
LEMO_INLINE void ForwardRows(const T* x, const T* weight, double eps, int64_t rows, int64_t width,
                             T* y, Wide<T>* rstd) {
  for (int64_t r = 0; r < rows; ++r, x += width, y += width) {
    double squares = 0;
    for (int64_t begin = 0; begin < width; begin += kBlockColumns) {
      const int64_t end = std::min(width, begin + kBlockColumns);
      Wide<T> sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = begin; j < end; ++j) sum += Load(x[j]) * Load(x[j]);
      squares += sum;
    }
    const Wide<T> scale = static_cast<Wide<T>>(1.0 / std::sqrt(squares / width + eps));
    rstd[r] = scale;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      y[j] = Round<T>(Load(weight[j]) * Load(Round<T>(Load(x[j]) * scale)));
    }
  }
}

// `partial` [width] floats are scratch and `dweight` [width] doubles get the sum of the rows; both
// null when the weight's gradient is not wanted.
template <typename T>
LEMO_INLINE void BackwardRows(const T* dy, const T* x, const Wide<T>* rstd, const T* weight,
                              int64_t rows, int64_t width, T* dx, Wide<T>* partial,
                              double* dweight) {
  for (int64_t r = 0; r < rows; ++r, dy += width, x += width, dx += width) {
    const Wide<T> scale = rstd[r];
    double total = 0;
    for (int64_t begin = 0; begin < width; begin += kBlockColumns) {
      const int64_t end = std::min(width, begin + kBlockColumns);
      Wide<T> sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = begin; j < end; ++j) sum += Load(dy[j]) * Load(weight[j]) * Load(x[j]);
      total += sum;
    }
    const Wide<T> projection = static_cast<Wide<T>>(total * scale / width);
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      dx[j] = Round<T>(scale * (Load(dy[j]) * Load(weight[j]) - Load(x[j]) * scale * projection));
    }
    if (dweight == nullptr) continue;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      partial[j] += Load(dy[j]) * Load(Round<T>(Load(x[j]) * scale));
    }
    if (r % kBlockRows == kBlockRows - 1 || r == rows - 1) {
      for (int64_t j = 0; j < width; ++j) {
        dweight[j] += partial[j];
        partial[j] = 0;
      }
    }
  }
}

#define LEMO_RMS_NORM_CLONES(T)                                                                 \
  LEMO_SIMD_CLONES void Forward(const T* x, const T* weight, double eps, int64_t rows,          \
                                int64_t width, T* y, Wide<T>* rstd) {                           \
    ForwardRows<T>(x, weight, eps, rows, width, y, rstd);                                       \
  }                                                                                             \
  LEMO_SIMD_CLONES void Backward(const T* dy, const T* x, const Wide<T>* rstd, const T* weight, \
                                 int64_t rows, int64_t width, T* dx, Wide<T>* partial,          \
                                 double* dweight) {                                             \
    BackwardRows<T>(dy, x, rstd, weight, rows, width, dx, partial, dweight);                    \
  }
LEMO_RMS_NORM_CLONES(double)
LEMO_RMS_NORM_CLONES(float)
LEMO_RMS_NORM_CLONES(c10::BFloat16)
#undef LEMO_RMS_NORM_CLONES

}  // namespace

template <typename T, typename W>
void RmsNormRows(const T* x, const T* weight, double eps, int64_t rows, int64_t width, T* y,
                 W* rstd) {
  Forward(x, weight, eps, rows, width, y, rstd);
}
template void RmsNormRows(const double*, const double*, double, int64_t, int64_t, double*, double*);
template void RmsNormRows(const float*, const float*, double, int64_t, int64_t, float*, float*);
template void RmsNormRows(const c10::BFloat16*, const c10::BFloat16*, double, int64_t, int64_t,
                          c10::BFloat16*, float*);

std::tuple<at::Tensor, at::Tensor> RmsNorm(const at::Tensor& x_any, const at::Tensor& weight_any,
                                           double eps) {
  CheckRmsNorm(x_any, weight_any);
  const at::Tensor x = x_any.contiguous();
  const at::Tensor weight = weight_any.contiguous();
  const int64_t width = x.size(-1);
  at::Tensor y = at::empty(x.sizes(), x.options());
  at::Tensor rstd =
      at::empty(x.sizes().slice(0, x.dim() - 1), x.options().dtype(WideType(x.scalar_type())));
  DispatchType(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const T* x_data = x.const_data_ptr<T>();
    const T* weight_data = weight.const_data_ptr<T>();
    T* y_data = y.mutable_data_ptr<T>();
    auto* rstd_data = rstd.mutable_data_ptr<Wide<T>>();
    at::parallel_for(0, rstd.numel(), GrainRows(width), [&](int64_t begin, int64_t end) {
      Forward(x_data + begin * width, weight_data, eps, end - begin, width, y_data + begin * width,
              rstd_data + begin);
    });
  });
  return {y, rstd};
}

std::tuple<at::Tensor, at::Tensor> RmsNormBackward(const at::Tensor& dy_any,
                                                   const at::Tensor& x_any,
                                                   const at::Tensor& rstd_any,
                                                   const at::Tensor& weight_any,
                                                   bool need_weight_grad) {
  CheckRmsNormBackward(dy_any, x_any, rstd_any, weight_any);
  const at::Tensor dy = dy_any.contiguous();
  const at::Tensor x = x_any.contiguous();
  const at::Tensor rstd = rstd_any.contiguous();
  const at::Tensor weight = weight_any.contiguous();
  const int64_t width = x.size(-1);
  const int64_t rows = rstd.numel();
  // At most 64 chunks, none under 64 rows or under 32 KiB: enough for the threads of a large host.
  const int64_t chunk_rows = std::max({int64_t{64}, GrainRows(width), (rows + 63) / 64});
  const int64_t chunks = (rows + chunk_rows - 1) / chunk_rows;
  at::Tensor dx = at::empty(x.sizes(), x.options());
  at::Tensor partials;
  at::Tensor sums;
  if (need_weight_grad) {
    partials = at::zeros({chunks, width}, rstd.options());
    sums = at::zeros({chunks, width}, x.options().dtype(at::kDouble));
  }
  DispatchType(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const T* dy_data = dy.const_data_ptr<T>();
    const T* x_data = x.const_data_ptr<T>();
    const T* weight_data = weight.const_data_ptr<T>();
    const auto* rstd_data = rstd.const_data_ptr<Wide<T>>();
    T* dx_data = dx.mutable_data_ptr<T>();
    auto* partial_data = need_weight_grad ? partials.mutable_data_ptr<Wide<T>>() : nullptr;
    double* sum_data = need_weight_grad ? sums.mutable_data_ptr<double>() : nullptr;
    at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const int64_t row = c * chunk_rows;
        Backward(dy_data + row * width, x_data + row * width, rstd_data + row, weight_data,
                 std::min(chunk_rows, rows - row), width, dx_data + row * width,
                 need_weight_grad ? partial_data + c * width : nullptr,
                 need_weight_grad ? sum_data + c * width : nullptr);
      }
    });
  });
  at::Tensor dweight;
  if (need_weight_grad) dweight = sums.sum(0).to(weight.scalar_type());
  return {dx, dweight};
}

}  // namespace lemo::kernels::cpu
