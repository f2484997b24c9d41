#include "kernels/rows/rows.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "kernels/rows/rows_internal.h"

namespace lemo::kernels {

at::Tensor GatherRows(const at::Tensor& src, const std::optional<at::Tensor>& idx) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("lemo::gather_rows", "")
                             .typed<decltype(cpu::GatherRows)>();
  TORCH_CHECK(!(at::GradMode::is_enabled() && src.requires_grad()),
              "gather_rows is not differentiable and src requires grad");
  at::AutoDispatchBelowAutograd guard;
  return op.call(src, idx);
}

void ScatterAddRows(const at::Tensor& dst, const std::optional<at::Tensor>& idx,
                    const at::Tensor& delta) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("lemo::scatter_add_rows_", "")
                             .typed<decltype(cpu::ScatterAddRows)>();
  TORCH_CHECK(!(at::GradMode::is_enabled() && (dst.requires_grad() || delta.requires_grad())),
              "scatter_add_rows_ is not differentiable and dst or delta requires grad");
  at::AutoDispatchBelowAutograd guard;
  op.call(dst, idx, delta);
}

// Beside the functions that call them, so that a static link which keeps those keeps these.
TORCH_LIBRARY_FRAGMENT(lemo, m) {
  m.def("gather_rows(Tensor src, Tensor? idx) -> Tensor");
  m.def("scatter_add_rows_(Tensor(a!) dst, Tensor? idx, Tensor delta) -> ()");
}

TORCH_LIBRARY_IMPL(lemo, CPU, m) {
  m.impl("gather_rows", cpu::GatherRows);
  m.impl("scatter_add_rows_", cpu::ScatterAddRows);
}

}  // namespace lemo::kernels
