#include "kernels/swiglu/swiglu.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/swiglu/swiglu_internal.h"

namespace lemo::kernels {
namespace {

class SwiGluFunction : public torch::autograd::Function<SwiGluFunction> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& gate,
                            const at::Tensor& up) {
    context->save_for_backward({gate, up});
    return SwiGluForward(gate, up);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    auto [dgate, dup] = SwiGluBackward(grads[0], saved[0], saved[1]);
    return {dgate, dup};
  }
};

}  // namespace

at::Tensor SwiGlu(const at::Tensor& gate, const at::Tensor& up) {
  if (at::GradMode::is_enabled() && (gate.requires_grad() || up.requires_grad())) {
    return SwiGluFunction::apply(gate, up);
  }
  return SwiGluForward(gate, up);
}

at::Tensor SwiGluForward(const at::Tensor& gate, const at::Tensor& up) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("lemo::swiglu", "")
                             .typed<decltype(cpu::SwiGlu)>();
  at::AutoDispatchBelowAutograd guard;
  return op.call(gate, up);
}

std::tuple<at::Tensor, at::Tensor> SwiGluBackward(const at::Tensor& dh, const at::Tensor& gate,
                                                  const at::Tensor& up) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("lemo::swiglu_backward", "")
                             .typed<decltype(cpu::SwiGluBackward)>();
  at::AutoDispatchBelowAutograd guard;
  return op.call(dh, gate, up);
}

// Beside the functions that call them, so that a static link which keeps those keeps these.
TORCH_LIBRARY_FRAGMENT(lemo, m) {
  m.def("swiglu(Tensor gate, Tensor up) -> Tensor");
  m.def("swiglu_backward(Tensor dh, Tensor gate, Tensor up) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(lemo, CPU, m) {
  m.impl("swiglu", cpu::SwiGlu);
  m.impl("swiglu_backward", cpu::SwiGluBackward);
}

}  // namespace lemo::kernels
