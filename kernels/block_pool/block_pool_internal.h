// The versions of block_pool behind the dispatcher, and the checks they share. Not for callers.
#pragma once

#include <optional>

#include "kernels/checks.h"

namespace lemo::kernels {

namespace reference {
at::Tensor BlockMeanMax(const at::Tensor& u, const at::Tensor& starts,
                        const std::optional<at::Tensor>& row_scale);
at::Tensor BlockMeanMaxBackward(const at::Tensor& dz, const at::Tensor& u, const at::Tensor& starts,
                                const std::optional<at::Tensor>& row_scale);
}  // namespace reference

namespace cpu {
at::Tensor BlockMeanMax(const at::Tensor& u, const at::Tensor& starts,
                        const std::optional<at::Tensor>& row_scale);
at::Tensor BlockMeanMaxBackward(const at::Tensor& dz, const at::Tensor& u, const at::Tensor& starts,
                                const std::optional<at::Tensor>& row_scale);
}  // namespace cpu

inline void CheckBlockMeanMax(const at::Tensor& u, const at::Tensor& starts,
                              const std::optional<at::Tensor>& row_scale) {
  constexpr const char* kOp = "block_mean_max";
  CheckFloatType(kOp, "u", u);
  TORCH_CHECK_VALUE(u.dim() == 2, kOp, ": u must be [N, r]; its shape is ", u.sizes());
  CheckIndexList(kOp, "starts", starts, -1, u.device());
  TORCH_CHECK_VALUE(starts.size(0) >= 1, kOp, ": starts is empty; no blocks have starts [0]");
  if (!row_scale) return;
  TORCH_CHECK_VALUE(
      row_scale->scalar_type() == WideType(u.scalar_type()) && row_scale->device() == u.device() &&
          row_scale->dim() == 1 && row_scale->size(0) == u.size(0),
      kOp, ": row_scale must be ", WideType(u.scalar_type()), " [", u.size(0), "] on ", u.device(),
      "; it is ", row_scale->scalar_type(), " ", row_scale->sizes(), " on ", row_scale->device());
}

inline void CheckBlockMeanMaxBackward(const at::Tensor& dz, const at::Tensor& u,
                                      const at::Tensor& starts,
                                      const std::optional<at::Tensor>& row_scale) {
  CheckBlockMeanMax(u, starts, row_scale);
  TORCH_CHECK_VALUE(dz.scalar_type() == WideType(u.scalar_type()) && dz.device() == u.device() &&
                        dz.dim() == 2 && dz.size(0) == starts.size(0) - 1 &&
                        dz.size(1) == 2 * u.size(1),
                    "block_mean_max_backward: dz must be ", WideType(u.scalar_type()), " [",
                    starts.size(0) - 1, ", ", 2 * u.size(1), "] on ", u.device(), "; it is ",
                    dz.scalar_type(), " ", dz.sizes(), " on ", dz.device());
}

// Throws unless the entries are 0 = starts[0] < starts[1] < ... = starts[blocks] = rows.
template <typename Index>
void CheckStarts(const char* op, const Index* starts, int64_t blocks, int64_t rows) {
  TORCH_CHECK_INDEX(starts[0] == 0, op, ": starts[0] must be 0; it is ", starts[0]);
  TORCH_CHECK_INDEX(starts[blocks] == rows, op, ": the last of starts must be ", rows, "; it is ",
                    starts[blocks]);
  for (int64_t b = 0; b < blocks; ++b) {
    TORCH_CHECK_INDEX(starts[b] < starts[b + 1], op, ": block ", b, " is empty: starts ", starts[b],
                      " and ", starts[b + 1]);
  }
}

}  // namespace lemo::kernels
