#include <ATen/ATen.h>
#include <torch/library.h>

#include "kernels/block_scan/block_scan_cuda.cuh"
#include "kernels/block_scan/block_scan_internal.h"
#include "kernels/cuda_bind.cuh"

namespace lemo::kernels::cuda {
namespace {

at::Tensor BlockInformativeness(const at::Tensor& q_any, const at::Tensor& k_any,
                                const at::Tensor& documents_any, int64_t combine) {
  CheckBlockInformativeness(q_any, k_any, documents_any, combine);
  const OnDevice device(q_any);
  const at::Tensor q = q_any.contiguous();
  const at::Tensor k = k_any.contiguous();
  const at::Tensor documents = documents_any.contiguous();
  at::Tensor parts = at::empty({InformativenessParts(q.size(1)), q.size(0)},
                               q.options().dtype(WideType(q.scalar_type())));
  C10_CUDA_CHECK(LaunchBlockInformativeness(ElementOf(q), q.const_data_ptr(), k.const_data_ptr(),
                                            q.size(0), q.size(1), IndexArrayOf(documents),
                                            documents.size(0) - 1, static_cast<int>(combine),
                                            parts.mutable_data_ptr(), device.stream()));
  return parts.sum(0);
}

std::tuple<at::Tensor, at::Tensor> BlockInformativenessBackward(const at::Tensor& di_any,
                                                                const at::Tensor& q_any,
                                                                const at::Tensor& k_any,
                                                                const at::Tensor& documents_any,
                                                                int64_t combine) {
  CheckBlockInformativenessBackward(di_any, q_any, k_any, documents_any, combine);
  const OnDevice device(q_any);
  const at::Tensor di = di_any.contiguous();
  const at::Tensor q = q_any.contiguous();
  const at::Tensor k = k_any.contiguous();
  const at::Tensor documents = documents_any.contiguous();
  at::Tensor dq = at::empty(q.sizes(), q.options());
  at::Tensor dk = at::empty(k.sizes(), k.options());
  C10_CUDA_CHECK(LaunchBlockInformativenessBackward(
      ElementOf(q), di.const_data_ptr(), q.const_data_ptr(), k.const_data_ptr(), q.size(0),
      q.size(1), IndexArrayOf(documents), documents.size(0) - 1, static_cast<int>(combine),
      dq.mutable_data_ptr(), dk.mutable_data_ptr(), device.stream()));
  return {dq, dk};
}

}  // namespace

TORCH_LIBRARY_IMPL(lemo, CUDA, m) {
  m.impl("block_informativeness", BlockInformativeness);
  m.impl("block_informativeness_backward", BlockInformativenessBackward);
}

}  // namespace lemo::kernels::cuda
