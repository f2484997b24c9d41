// The versions of rope behind the dispatcher, and the checks they share. Not for callers.
#pragma once

#include "kernels/checks.h"

namespace lemo::kernels {

namespace reference {
at::Tensor Rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool inverse);
}  // namespace reference

namespace cpu {
at::Tensor Rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool inverse);
}  // namespace cpu

inline void CheckRope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  CheckFloatType("rope", "x", x);
  TORCH_CHECK_VALUE(x.dim() == 3 && x.size(2) % 2 == 0,
                    "rope: x must be [N, heads, D] with even D; its shape is ", x.sizes());
  for (const at::Tensor* table : {&cos, &sin}) {
    TORCH_CHECK_VALUE(
        table->scalar_type() == WideType(x.scalar_type()) && table->device() == x.device() &&
            table->dim() == 2 && table->size(0) == x.size(0) && table->size(1) == x.size(2) / 2,
        "rope: for x ", x.scalar_type(), " ", x.sizes(), " on ", x.device(),
        ", cos and sin must be ", WideType(x.scalar_type()), " [", x.size(0), ", ", x.size(2) / 2,
        "] there; one is ", table->scalar_type(), " ", table->sizes(), " on ", table->device());
  }
}

}  // namespace lemo::kernels
