#include "kernels/block_pool/block_pool.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/block_pool/block_pool_internal.h"

namespace lemo::kernels {
namespace {

class BlockMeanMaxFunction : public torch::autograd::Function<BlockMeanMaxFunction> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& u,
                            const at::Tensor& starts, const std::optional<at::Tensor>& row_scale) {
    context->save_for_backward({u, starts, row_scale.value_or(at::Tensor())});
    return BlockMeanMaxForward(u, starts, row_scale);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const auto row_scale = saved[2].defined() ? std::optional(saved[2]) : std::nullopt;
    return {BlockMeanMaxBackward(grads[0], saved[0], saved[1], row_scale), at::Tensor(),
            at::Tensor()};
  }
};

}  // namespace

at::Tensor BlockMeanMax(const at::Tensor& u, const at::Tensor& starts,
                        const std::optional<at::Tensor>& row_scale) {
  if (!at::GradMode::is_enabled()) return BlockMeanMaxForward(u, starts, row_scale);
  TORCH_CHECK(!row_scale || !row_scale->requires_grad(),
              "block_mean_max: row_scale gets no gradient and requires grad");
  if (u.requires_grad()) return BlockMeanMaxFunction::apply(u, starts, row_scale);
  return BlockMeanMaxForward(u, starts, row_scale);
}

at::Tensor BlockMeanMaxForward(const at::Tensor& u, const at::Tensor& starts,
                               const std::optional<at::Tensor>& row_scale) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("lemo::block_mean_max", "")
                             .typed<decltype(cpu::BlockMeanMax)>();
  at::AutoDispatchBelowAutograd guard;
  return op.call(u, starts, row_scale);
}

at::Tensor BlockMeanMaxBackward(const at::Tensor& dz, const at::Tensor& u, const at::Tensor& starts,
                                const std::optional<at::Tensor>& row_scale) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("lemo::block_mean_max_backward", "")
                             .typed<decltype(cpu::BlockMeanMaxBackward)>();
  at::AutoDispatchBelowAutograd guard;
  return op.call(dz, u, starts, row_scale);
}

// Beside the functions that call them, so that a static link which keeps those keeps these.
TORCH_LIBRARY_FRAGMENT(lemo, m) {
  m.def("block_mean_max(Tensor u, Tensor starts, Tensor? row_scale) -> Tensor");
  m.def("block_mean_max_backward(Tensor dz, Tensor u, Tensor starts, Tensor? row_scale) -> Tensor");
}

TORCH_LIBRARY_IMPL(lemo, CPU, m) {
  m.impl("block_mean_max", cpu::BlockMeanMax);
  m.impl("block_mean_max_backward", cpu::BlockMeanMaxBackward);
}

}  // namespace lemo::kernels
