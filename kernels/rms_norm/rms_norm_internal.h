// The versions of rms_norm behind the dispatcher, and the checks they share. Not for callers.
#pragma once

#include <tuple>

#include "kernels/checks.h"

namespace lemo::kernels {

namespace reference {
std::tuple<at::Tensor, at::Tensor> RmsNorm(const at::Tensor& x, const at::Tensor& weight,
                                           double eps);
std::tuple<at::Tensor, at::Tensor> RmsNormBackward(const at::Tensor& dy, const at::Tensor& x,
                                                   const at::Tensor& rstd, const at::Tensor& weight,
                                                   bool need_weight_grad);
}  // namespace reference

namespace cpu {
std::tuple<at::Tensor, at::Tensor> RmsNorm(const at::Tensor& x, const at::Tensor& weight,
                                           double eps);
std::tuple<at::Tensor, at::Tensor> RmsNormBackward(const at::Tensor& dy, const at::Tensor& x,
                                                   const at::Tensor& rstd, const at::Tensor& weight,
                                                   bool need_weight_grad);

// y and rstd of contiguous rows, in this thread: what RmsNorm calls, for ops that norm rows they
// have just made and promise its bits. T double, float or BFloat16; W is rstd's type.
template <typename T, typename W>
void RmsNormRows(const T* x, const T* weight, double eps, int64_t rows, int64_t width, T* y,
                 W* rstd);
}  // namespace cpu

inline void CheckRmsNorm(const at::Tensor& x, const at::Tensor& weight) {
  CheckFloatType("rms_norm", "x", x);
  CheckSameKind("rms_norm", "weight", weight, "x", x);
  TORCH_CHECK_VALUE(x.dim() >= 1 && x.size(-1) > 0,
                    "rms_norm: x needs a last dimension above 0; its ", "shape is ", x.sizes());
  TORCH_CHECK_VALUE(weight.dim() == 1 && weight.size(0) == x.size(-1), "rms_norm: weight must be [",
                    x.size(-1), "] for x ", x.sizes(), "; its shape is ", weight.sizes());
}

inline void CheckRmsNormBackward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& rstd,
                                 const at::Tensor& weight) {
  CheckRmsNorm(x, weight);
  CheckSameKind("rms_norm_backward", "dy", dy, "x", x);
  TORCH_CHECK_VALUE(dy.sizes() == x.sizes(), "rms_norm_backward: dy is ", dy.sizes(), ", x is ",
                    x.sizes());
  TORCH_CHECK_VALUE(
      rstd.scalar_type() == WideType(x.scalar_type()) && rstd.device() == x.device() &&
          rstd.sizes() == x.sizes().slice(0, x.dim() - 1),
      "rms_norm_backward: rstd must be ", WideType(x.scalar_type()), " ",
      x.sizes().slice(0, x.dim() - 1), "; it is ", rstd.scalar_type(), " ", rstd.sizes());
}

}  // namespace lemo::kernels
