#include "kernels/cross_entropy/cross_entropy.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "kernels/cross_entropy/cross_entropy_internal.h"

namespace lemo::kernels {

std::tuple<at::Tensor, at::Tensor> CrossEntropyInPlace(const at::Tensor& logits,
                                                       const at::Tensor& labels,
                                                       const CrossEntropyOptions& options) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("lemo::cross_entropy_", "")
                             .typed<decltype(cpu::CrossEntropy)>();
  TORCH_CHECK(!(at::GradMode::is_enabled() && logits.requires_grad()),
              "cross_entropy_ is not differentiable and logits requires grad");
  at::AutoDispatchBelowAutograd guard;
  return op.call(logits, labels, options.scale, options.want_gradient);
}

// Beside the function that calls it, so that a static link which keeps that keeps this.
TORCH_LIBRARY_FRAGMENT(lemo, m) {
  m.def(
      "cross_entropy_(Tensor(a!) logits, Tensor labels, float scale, bool want_gradient) "
      "-> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(lemo, CPU, m) { m.impl("cross_entropy_", cpu::CrossEntropy); }

}  // namespace lemo::kernels
