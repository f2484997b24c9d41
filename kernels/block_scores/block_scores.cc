#include "kernels/block_scores/block_scores.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "kernels/block_scores/block_scores_internal.h"

namespace lemo::kernels {

at::Tensor BlockScores(const at::Tensor& q, const at::Tensor& k, int64_t block_rows, double scale) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("lemo::block_scores", "")
                             .typed<decltype(cpu::BlockScores)>();
  TORCH_CHECK(!(at::GradMode::is_enabled() && (q.requires_grad() || k.requires_grad())),
              "block_scores is not differentiable and q or k requires grad");
  at::AutoDispatchBelowAutograd guard;
  return op.call(q, k, block_rows, scale);
}

// Beside the function that calls it, so that a static link which keeps one keeps the other.
TORCH_LIBRARY_FRAGMENT(lemo, m) {
  m.def("block_scores(Tensor q, Tensor k, int block_rows, float scale) -> Tensor");
}

TORCH_LIBRARY_IMPL(lemo, CPU, m) { m.impl("block_scores", cpu::BlockScores); }

}  // namespace lemo::kernels
