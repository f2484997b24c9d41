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

at::Tensor CrossEntropyStatistics(const at::Tensor& logits, const at::Tensor& labels) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("lemo::cross_entropy_statistics", "")
                             .typed<decltype(cpu::Statistics)>();
  at::AutoDispatchBelowAutograd guard;
  return op.call(logits, labels);
}

void CrossEntropyGradientInPlace(const at::Tensor& logits, const at::Tensor& labels,
                                 const at::Tensor& largest, const at::Tensor& total, double scale) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("lemo::cross_entropy_gradient_", "")
                             .typed<decltype(cpu::Gradient)>();
  TORCH_CHECK(!(at::GradMode::is_enabled() && logits.requires_grad()),
              "cross_entropy_gradient_ is not differentiable and logits requires grad");
  at::AutoDispatchBelowAutograd guard;
  op.call(logits, labels, largest, total, scale);
}

// Beside the functions that call them, so that a static link which keeps those keeps these.
TORCH_LIBRARY_FRAGMENT(lemo, m) {
  m.def(
      "cross_entropy_(Tensor(a!) logits, Tensor labels, float scale, bool want_gradient) "
      "-> (Tensor, Tensor)");
  m.def("cross_entropy_statistics(Tensor logits, Tensor labels) -> Tensor");
  m.def(
      "cross_entropy_gradient_(Tensor(a!) logits, Tensor labels, Tensor largest, Tensor total, "
      "float scale) -> ()");
}

TORCH_LIBRARY_IMPL(lemo, CPU, m) {
  m.impl("cross_entropy_", cpu::CrossEntropy);
  m.impl("cross_entropy_statistics", cpu::Statistics);
  m.impl("cross_entropy_gradient_", cpu::Gradient);
}

}  // namespace lemo::kernels
