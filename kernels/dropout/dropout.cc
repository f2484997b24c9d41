#include "kernels/dropout/dropout.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/dropout/dropout_internal.h"

namespace lemo::kernels {
namespace {

at::Tensor Masked(const at::Tensor& x, double p, int64_t seed, int64_t stream,
                  const at::Tensor& row_ids, int64_t first_column) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("lemo::dropout", "")
                             .typed<decltype(cpu::Dropout)>();
  at::AutoDispatchBelowAutograd guard;
  return op.call(x, p, seed, stream, row_ids, first_column);
}

class DropoutFunction : public torch::autograd::Function<DropoutFunction> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            double p, int64_t seed, int64_t stream, const at::Tensor& row_ids,
                            int64_t first_column) {
    context->save_for_backward({row_ids});
    context->saved_data["p"] = p;
    context->saved_data["seed"] = seed;
    context->saved_data["stream"] = stream;
    context->saved_data["first_column"] = first_column;
    return Masked(x, p, seed, stream, row_ids, first_column);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const at::Tensor dx =
        Masked(grads[0], context->saved_data["p"].toDouble(), context->saved_data["seed"].toInt(),
               context->saved_data["stream"].toInt(), context->get_saved_variables()[0],
               context->saved_data["first_column"].toInt());
    return {dx, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor Dropout(const at::Tensor& x, double p, const DropoutKey& key,
                   const at::Tensor& row_ids) {
  CheckDropout(x, p, row_ids);
  TORCH_CHECK_VALUE(key.first_column >= 0, "dropout: first_column is ", key.first_column);
  if (p == 0) return x;
  if (at::GradMode::is_enabled() && x.requires_grad()) {
    return DropoutFunction::apply(x, p, key.seed, key.stream, row_ids, key.first_column);
  }
  return Masked(x, p, key.seed, key.stream, row_ids, key.first_column);
}

// Beside the function that calls it, so that a static link which keeps that keeps this.
TORCH_LIBRARY_FRAGMENT(lemo, m) {
  m.def(
      "dropout(Tensor x, float p, int seed, int stream, Tensor row_ids, int first_column) "
      "-> Tensor");
}

TORCH_LIBRARY_IMPL(lemo, CPU, m) { m.impl("dropout", cpu::Dropout); }

}  // namespace lemo::kernels
