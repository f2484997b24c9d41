#include <cmath>

#include "kernels/ref.h"
#include "kernels/rms_norm/rms_norm_internal.h"

namespace lemo::kernels::reference {

std::tuple<at::Tensor, at::Tensor> RmsNorm(const at::Tensor& x, const at::Tensor& weight,
                                           double eps) {
  CheckRmsNorm(x, weight);
  const int64_t width = x.size(-1);
  const int64_t rows = x.numel() / width;
  const auto values = Values(x);
  const auto weights = Values(weight);
  std::vector<double> y(values.size());
  std::vector<double> rstd(rows);
  for (int64_t r = 0; r < rows; ++r) {
    double squares = 0;
    for (int64_t j = 0; j < width; ++j) squares += values[r * width + j] * values[r * width + j];
    rstd[r] = 1.0 / std::sqrt(squares / width + eps);
    for (int64_t j = 0; j < width; ++j) {
      y[r * width + j] = weights[j] * RoundTo(x.scalar_type(), values[r * width + j] * rstd[r]);
    }
  }
  return {FromValues(y, x.sizes(), x.scalar_type()),
          FromValues(rstd, x.sizes().slice(0, x.dim() - 1), WideType(x.scalar_type()))};
}

std::tuple<at::Tensor, at::Tensor> RmsNormBackward(const at::Tensor& dy, const at::Tensor& x,
                                                   const at::Tensor& rstd, const at::Tensor& weight,
                                                   bool need_weight_grad) {
  CheckRmsNormBackward(dy, x, rstd, weight);
  const int64_t width = x.size(-1);
  const int64_t rows = x.numel() / width;
  const auto grads = Values(dy);
  const auto values = Values(x);
  const auto scales = Values(rstd);
  const auto weights = Values(weight);
  std::vector<double> dx(values.size());
  std::vector<double> dweight(width);
  for (int64_t r = 0; r < rows; ++r) {
    double projection = 0;
    for (int64_t j = 0; j < width; ++j) {
      const double normalised = values[r * width + j] * scales[r];
      projection += grads[r * width + j] * weights[j] * normalised / width;
    }
    for (int64_t j = 0; j < width; ++j) {
      const double normalised = values[r * width + j] * scales[r];
      dx[r * width + j] = scales[r] * (grads[r * width + j] * weights[j] - normalised * projection);
      dweight[j] += grads[r * width + j] * RoundTo(x.scalar_type(), normalised);
    }
  }
  return {
      FromValues(dx, x.sizes(), x.scalar_type()),
      need_weight_grad ? FromValues(dweight, weight.sizes(), weight.scalar_type()) : at::Tensor()};
}

}  // namespace lemo::kernels::reference
