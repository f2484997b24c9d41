#include "kernels/block_scan/block_scan.h"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/block_scan/block_scan_internal.h"

namespace lemo::kernels {
namespace {

class InformativenessFunction : public torch::autograd::Function<InformativenessFunction> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& q,
                            const at::Tensor& k, const at::Tensor& documents, int64_t combine) {
    context->save_for_backward({q, k, documents});
    context->saved_data["combine"] = combine;
    return BlockInformativenessForward(q, k, documents, static_cast<Combine>(combine));
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    auto [dq, dk] =
        BlockInformativenessBackward(grads[0], saved[0], saved[1], saved[2],
                                     static_cast<Combine>(context->saved_data["combine"].toInt()));
    return {dq, dk, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor BlockInformativeness(const at::Tensor& q, const at::Tensor& k,
                                const at::Tensor& documents, Combine combine) {
  if (at::GradMode::is_enabled() && (q.requires_grad() || k.requires_grad())) {
    return InformativenessFunction::apply(q, k, documents, static_cast<int64_t>(combine));
  }
  return BlockInformativenessForward(q, k, documents, combine);
}

at::Tensor BlockInformativenessForward(const at::Tensor& q, const at::Tensor& k,
                                       const at::Tensor& documents, Combine combine) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("lemo::block_informativeness", "")
                             .typed<decltype(cpu::BlockInformativeness)>();
  at::AutoDispatchBelowAutograd guard;
  return op.call(q, k, documents, static_cast<int64_t>(combine));
}

std::tuple<at::Tensor, at::Tensor> BlockInformativenessBackward(const at::Tensor& di,
                                                                const at::Tensor& q,
                                                                const at::Tensor& k,
                                                                const at::Tensor& documents,
                                                                Combine combine) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("lemo::block_informativeness_backward", "")
                             .typed<decltype(cpu::BlockInformativenessBackward)>();
  at::AutoDispatchBelowAutograd guard;
  return op.call(di, q, k, documents, static_cast<int64_t>(combine));
}

at::Tensor CombineBlockScores(const at::Tensor& scores, Combine combine) {
  CheckCombineBlockScores(scores, static_cast<int64_t>(combine));
  const int64_t count = scores.size(0);
  const at::Tensor causal = scores.tril();
  const at::Tensor column = causal.sum(0);
  switch (combine) {
    case Combine::kSymmetric:
      return (column + causal.tril(-1).sum(1)) / static_cast<double>(std::max<int64_t>(1, count));
    case Combine::kColumn:
      return column;
    case Combine::kColumnMean:
      return column / at::arange(count, 0, -1, scores.options());
  }
  return column;
}

// Beside the functions that call them, so that a static link which keeps those keeps these.
TORCH_LIBRARY_FRAGMENT(lemo, m) {
  m.def("block_informativeness(Tensor q, Tensor k, Tensor documents, int combine) -> Tensor");
  m.def(
      "block_informativeness_backward(Tensor di, Tensor q, Tensor k, Tensor documents, int "
      "combine) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(lemo, CPU, m) {
  m.impl("block_informativeness", cpu::BlockInformativeness);
  m.impl("block_informativeness_backward", cpu::BlockInformativenessBackward);
}

}  // namespace lemo::kernels
