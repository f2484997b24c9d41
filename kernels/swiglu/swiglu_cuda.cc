#include "kernels/swiglu/swiglu_cuda.cuh"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "kernels/cuda_bind.cuh"
#include "kernels/swiglu/swiglu_internal.h"

namespace lemo::kernels::cuda {
namespace {

at::Tensor SwiGlu(const at::Tensor& gate_any, const at::Tensor& up_any) {
  CheckSwiGlu(gate_any, up_any);
  const OnDevice device(gate_any);
  const at::Tensor gate = gate_any.contiguous();
  const at::Tensor up = up_any.contiguous();
  at::Tensor h = at::empty(gate.sizes(), gate.options());
  C10_CUDA_CHECK(LaunchSwiGlu(ElementOf(gate), gate.const_data_ptr(), up.const_data_ptr(),
                              gate.numel(), h.mutable_data_ptr(), device.stream()));
  return h;
}

std::tuple<at::Tensor, at::Tensor> SwiGluBackward(const at::Tensor& dh_any,
                                                  const at::Tensor& gate_any,
                                                  const at::Tensor& up_any) {
  CheckSwiGluBackward(dh_any, gate_any, up_any);
  const OnDevice device(gate_any);
  const at::Tensor dh = dh_any.contiguous();
  const at::Tensor gate = gate_any.contiguous();
  const at::Tensor up = up_any.contiguous();
  at::Tensor dgate = at::empty(gate.sizes(), gate.options());
  at::Tensor dup = at::empty(gate.sizes(), gate.options());
  C10_CUDA_CHECK(LaunchSwiGluBackward(ElementOf(gate), dh.const_data_ptr(), gate.const_data_ptr(),
                                      up.const_data_ptr(), gate.numel(), dgate.mutable_data_ptr(),
                                      dup.mutable_data_ptr(), device.stream()));
  return {dgate, dup};
}

}  // namespace

TORCH_LIBRARY_IMPL(lemo, CUDA, m) {
  m.impl("swiglu", SwiGlu);
  m.impl("swiglu_backward", SwiGluBackward);
}

}  // namespace lemo::kernels::cuda
