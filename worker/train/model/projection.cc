#include "worker/train/model/projection.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

namespace lemo::train {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Shape without content: one element seen everywhere.
at::Tensor Unread(at::IntArrayRef shape, const at::TensorOptions& options) {
  return at::zeros({1}, options).expand(shape);
}

// As an adapter's inner activation is.
bool IsNarrow(const at::Tensor& x) { return x.size(1) <= 64; }

class LinearFunction : public torch::autograd::Function<LinearFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, bool computed) {
    context->save_for_backward({weight.requires_grad() ? x : at::Tensor(), weight});
    context->saved_data["bias"] = bias.has_value() && bias->requires_grad();
    if (!computed) return Unread({x.size(0), weight.size(0)}, x.options());
    return at::linear(x, weight, bias);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& x = saved[0];
    const at::Tensor& weight = saved[1];
    const at::Tensor& dy = grads[0];
    at::Tensor dx, dweight, dbias;
    if (context->needs_input_grad(0)) dx = dy.matmul(weight);
    // Of a narrow matrix transposed, which libraries are four times as fast at.
    if (x.defined()) dweight = IsNarrow(x) ? x.t().matmul(dy).t() : dy.t().matmul(x);
    if (context->saved_data["bias"].toBool()) dbias = dy.sum(0);
    return {dx, dweight, dbias, at::Tensor()};
  }
};

// Gives `value` the graph of a + b, or of a alone.
class SubstituteFunction : public torch::autograd::Function<SubstituteFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor&,
                            const std::optional<at::Tensor>& b, const at::Tensor& value) {
    context->saved_data["both"] = b.has_value();
    return value.alias();
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    return {grads[0], context->saved_data["both"].toBool() ? grads[0] : at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor LinearGraph(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                       const Output& output) {
  const at::Tensor y = LinearFunction::apply(
      x, weight, bias.defined() ? std::optional(bias) : std::nullopt, output.computed());
  return output.known() ? SubstituteFunction::apply(y, std::nullopt, output.value()) : y;
}

at::Tensor AddGraph(const at::Tensor& a, const at::Tensor& b, const Output& output) {
  if (output.computed()) return a + b;
  return SubstituteFunction::apply(
      a, std::optional(b), output.known() ? output.value() : Unread(a.sizes(), a.options()));
}

at::Tensor Projection::operator()(const at::Tensor& x, const StageContext& context,
                                  const Output& output) const {
  const at::Tensor added = adds_bias ? bias : at::Tensor();
  if (!branch) return LinearGraph(x, weight, added, output);
  const Output part = output.computed() ? Output::Compute() : Output::Skip();
  return AddGraph(LinearGraph(x, weight, added, part), branch(x, context, part), output);
}

}  // namespace lemo::train
