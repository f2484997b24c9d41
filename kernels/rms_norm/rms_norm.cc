#include "kernels/rms_norm/rms_norm.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/rms_norm/rms_norm_internal.h"

namespace lemo::kernels {
namespace {

class RmsNormFunction : public torch::autograd::Function<RmsNormFunction> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& weight, double eps) {
    auto [y, rstd] = RmsNormForward(x, weight, eps);
    context->save_for_backward({x, rstd, weight});
    return y;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    auto [dx, dweight] =
        RmsNormBackward(grads[0], saved[0], saved[1], saved[2], context->needs_input_grad(1));
    return {dx, dweight, at::Tensor()};
  }
};

}  // namespace

at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  if (at::GradMode::is_enabled() && (x.requires_grad() || weight.requires_grad())) {
    return RmsNormFunction::apply(x, weight, eps);
  }
  return std::get<0>(RmsNormForward(x, weight, eps));
}

std::tuple<at::Tensor, at::Tensor> RmsNormForward(const at::Tensor& x, const at::Tensor& weight,
                                                  double eps) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("lemo::rms_norm", "")
                             .typed<decltype(cpu::RmsNorm)>();
  at::AutoDispatchBelowAutograd guard;
  return op.call(x, weight, eps);
}

std::tuple<at::Tensor, at::Tensor> RmsNormBackward(const at::Tensor& dy, const at::Tensor& x,
                                                   const at::Tensor& rstd, const at::Tensor& weight,
                                                   bool need_weight_grad) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("lemo::rms_norm_backward", "")
                             .typed<decltype(cpu::RmsNormBackward)>();
  at::AutoDispatchBelowAutograd guard;
  return op.call(dy, x, rstd, weight, need_weight_grad);
}

// Beside the functions that call them, so that a static link which keeps those keeps these.
TORCH_LIBRARY_FRAGMENT(lemo, m) {
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)");
  m.def(
      "rms_norm_backward(Tensor dy, Tensor x, Tensor rstd, Tensor weight, bool need_weight_grad) "
      "-> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(lemo, CPU, m) {
  m.impl("rms_norm", cpu::RmsNorm);
  m.impl("rms_norm_backward", cpu::RmsNormBackward);
}

}  // namespace lemo::kernels
