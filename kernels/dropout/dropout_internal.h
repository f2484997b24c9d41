// The versions of dropout behind the dispatcher, and the checks they share. Not for callers.
#pragma once

#include "kernels/checks.h"

namespace lemo::kernels {

namespace reference {
at::Tensor Dropout(const at::Tensor& x, double p, int64_t seed, int64_t stream,
                   const at::Tensor& row_ids, int64_t first_column = 0);
}  // namespace reference

namespace cpu {
at::Tensor Dropout(const at::Tensor& x, double p, int64_t seed, int64_t stream,
                   const at::Tensor& row_ids, int64_t first_column = 0);
}  // namespace cpu

inline void CheckDropout(const at::Tensor& x, double p, const at::Tensor& row_ids) {
  CheckFloatType("dropout", "x", x);
  TORCH_CHECK_VALUE(p >= 0 && p < 1, "dropout: p must be in [0, 1); it is ", p);
  TORCH_CHECK_VALUE(x.dim() == 2, "dropout: x must be [N, H]; its shape is ", x.sizes());
  CheckIndexList("dropout", "row_ids", row_ids, x.size(0), x.device());
}

}  // namespace lemo::kernels
