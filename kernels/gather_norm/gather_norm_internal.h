// The versions of gather_rms_norm behind the dispatcher, and the checks they share. Not for
// callers. They fill `x` and return (y, rstd).
#pragma once

#include <optional>
#include <tuple>

#include "kernels/checks.h"

namespace lemo::kernels {

namespace reference {
std::tuple<at::Tensor, at::Tensor> GatherRmsNorm(const at::Tensor& src,
                                                 const std::optional<at::Tensor>& idx,
                                                 const at::Tensor& weight, double eps,
                                                 const at::Tensor& x);
}  // namespace reference

namespace cpu {
std::tuple<at::Tensor, at::Tensor> GatherRmsNorm(const at::Tensor& src,
                                                 const std::optional<at::Tensor>& idx,
                                                 const at::Tensor& weight, double eps,
                                                 const at::Tensor& x);
}  // namespace cpu

inline void CheckGatherRmsNorm(const at::Tensor& src, const std::optional<at::Tensor>& idx,
                               const at::Tensor& weight, const at::Tensor& x) {
  constexpr const char* kOp = "gather_rms_norm";
  CheckFloatType(kOp, "src", src);
  TORCH_CHECK_VALUE(src.dim() == 2 && src.size(1) > 0, kOp,
                    ": src must be [N, H] with H above 0; its shape is ", src.sizes());
  if (idx) CheckIndexList(kOp, "idx", *idx, -1, src.device());
  CheckSameKind(kOp, "weight", weight, "src", src);
  TORCH_CHECK_VALUE(weight.dim() == 1 && weight.size(0) == src.size(1), kOp, ": weight must be [",
                    src.size(1), "]; its shape is ", weight.sizes());
  CheckSameKind(kOp, "x", x, "src", src);
  const int64_t rows = idx ? idx->size(0) : src.size(0);
  TORCH_CHECK_VALUE(
      x.dim() == 2 && x.size(0) == rows && x.size(1) == src.size(1) && x.is_contiguous(), kOp,
      ": x must be [", rows, ", ", src.size(1), "] and contiguous; its shape is ", x.sizes(),
      ", strides ", x.strides());
  if (x.numel() == 0 || src.numel() == 0) return;
  // Of a src that is not contiguous: the bytes between its first and its last element.
  const auto* src_begin = static_cast<const char*>(src.const_data_ptr());
  const int64_t span = (src.size(0) - 1) * src.stride(0) + (src.size(1) - 1) * src.stride(1) + 1;
  const auto* src_end = src_begin + span * static_cast<int64_t>(src.element_size());
  const auto* x_begin = static_cast<const char*>(x.const_data_ptr());
  TORCH_CHECK_VALUE(x_begin + x.nbytes() <= src_begin || src_end <= x_begin, kOp,
                    ": x overlaps src");
}

}  // namespace lemo::kernels
