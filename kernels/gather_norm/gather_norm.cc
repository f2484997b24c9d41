#include "kernels/gather_norm/gather_norm.h"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "kernels/gather_norm/gather_norm_internal.h"

namespace lemo::kernels {

NormedRows GatherRmsNorm(const at::Tensor& src, const std::optional<at::Tensor>& idx,
                         const at::Tensor& weight, double eps,
                         const std::optional<at::Tensor>& x_slot) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("lemo::gather_rms_norm", "")
                             .typed<decltype(cpu::GatherRmsNorm)>();
  TORCH_CHECK(!(at::GradMode::is_enabled() && (src.requires_grad() || weight.requires_grad())),
              "gather_rms_norm is not differentiable and src or weight requires grad");
  TORCH_CHECK_VALUE(src.dim() == 2, "gather_rms_norm: src must be [N, H]; its shape is ",
                    src.sizes());
  at::AutoDispatchBelowAutograd guard;
  NormedRows rows;
  rows.x =
      x_slot ? *x_slot : at::empty({idx ? idx->numel() : src.size(0), src.size(1)}, src.options());
  std::tie(rows.y, rows.rstd) = op.call(src, idx, weight, eps, rows.x);
  return rows;
}

// Beside the function that calls it, so that a static link which keeps one keeps the other.
TORCH_LIBRARY_FRAGMENT(lemo, m) {
  m.def(
      "gather_rms_norm(Tensor src, Tensor? idx, Tensor weight, float eps, Tensor(a!) x) -> "
      "(Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(lemo, CPU, m) { m.impl("gather_rms_norm", cpu::GatherRmsNorm); }

}  // namespace lemo::kernels
