#include "kernels/block_select/block_select.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "kernels/block_select/block_select_internal.h"

namespace lemo::kernels {

at::Tensor SelectTopBlocks(const at::Tensor& scores, const at::Tensor& mandatory,
                           const at::Tensor& documents, const at::Tensor& counts) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("lemo::select_top_blocks", "")
                             .typed<decltype(cpu::SelectTopBlocks)>();
  at::AutoDispatchBelowAutograd guard;
  return op.call(scores, mandatory, documents, counts);
}

at::Tensor RowsOfBlocks(const at::Tensor& starts, const at::Tensor& mask, int64_t rows,
                        at::ScalarType type) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("lemo::rows_of_blocks", "")
                             .typed<decltype(cpu::RowsOfBlocks)>();
  at::AutoDispatchBelowAutograd guard;
  return op.call(starts, mask, rows, type);
}

// Beside the functions that call them, so that a static link which keeps those keeps these.
TORCH_LIBRARY_FRAGMENT(lemo, m) {
  m.def(
      "select_top_blocks(Tensor scores, Tensor mandatory, Tensor documents, Tensor counts) -> "
      "Tensor");
  m.def("rows_of_blocks(Tensor starts, Tensor mask, int rows, ScalarType type) -> Tensor");
}

TORCH_LIBRARY_IMPL(lemo, CPU, m) {
  m.impl("select_top_blocks", cpu::SelectTopBlocks);
  m.impl("rows_of_blocks", cpu::RowsOfBlocks);
}

}  // namespace lemo::kernels
