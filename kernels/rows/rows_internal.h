// The versions of gather_rows and scatter_add_rows_ behind the dispatcher, and the checks they
// share.
#pragma once

#include <optional>

#include "kernels/checks.h"

namespace lemo::kernels {

namespace reference {
at::Tensor GatherRows(const at::Tensor& src, const std::optional<at::Tensor>& idx);
void ScatterAddRows(const at::Tensor& dst, const std::optional<at::Tensor>& idx,
                    const at::Tensor& delta);
}  // namespace reference

namespace cpu {
at::Tensor GatherRows(const at::Tensor& src, const std::optional<at::Tensor>& idx);
void ScatterAddRows(const at::Tensor& dst, const std::optional<at::Tensor>& idx,
                    const at::Tensor& delta);
}  // namespace cpu

inline void CheckGatherRows(const at::Tensor& src, const std::optional<at::Tensor>& idx) {
  CheckFloatType("gather_rows", "src", src);
  TORCH_CHECK_VALUE(src.dim() == 2, "gather_rows: src must be [N, H]; its shape is ", src.sizes());
  if (idx) CheckIndexList("gather_rows", "idx", *idx, -1, src.device());
}

inline void CheckScatterAddRows(const at::Tensor& dst, const std::optional<at::Tensor>& idx,
                                const at::Tensor& delta) {
  constexpr const char* kOp = "scatter_add_rows_";
  CheckFloatType(kOp, "dst", dst);
  CheckSameKind(kOp, "delta", delta, "dst", dst);
  TORCH_CHECK_VALUE(dst.dim() == 2 && dst.is_contiguous(), kOp,
                    ": dst must be [N, H] and contiguous; its shape is ", dst.sizes(), ", strides ",
                    dst.strides());
  if (idx) CheckIndexList(kOp, "idx", *idx, -1, dst.device());
  const int64_t rows = idx ? idx->size(0) : dst.size(0);
  TORCH_CHECK_VALUE(delta.dim() == 2 && delta.size(0) == rows && delta.size(1) == dst.size(1), kOp,
                    ": delta must be [", rows, ", ", dst.size(1), "]; its shape is ",
                    delta.sizes());
  const auto* dst_begin = static_cast<const char*>(dst.const_data_ptr());
  const auto* delta_begin = static_cast<const char*>(delta.const_data_ptr());
  TORCH_CHECK_VALUE(dst_begin + dst.nbytes() <= delta_begin ||
                        delta_begin + delta.element_size() * delta.numel() <= dst_begin ||
                        delta.numel() == 0,
                    kOp, ": delta overlaps dst");
}

// Throws unless idx is strictly ascending inside [0, rows).
template <typename Index>
void CheckRowList(const char* op, const Index* idx, int64_t count, int64_t rows) {
  for (int64_t k = 0; k < count; ++k) {
    TORCH_CHECK_INDEX(idx[k] >= 0 && idx[k] < rows, op, ": idx[", k, "] is ", idx[k],
                      ", outside [0, ", rows, ")");
    TORCH_CHECK_INDEX(k == 0 || idx[k] > idx[k - 1], op, ": idx must ascend strictly; idx[", k,
                      "] is ", idx[k], " after ", idx[k - 1]);
  }
}

}  // namespace lemo::kernels
