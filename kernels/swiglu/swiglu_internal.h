// The versions of swiglu behind the dispatcher, and the checks they share. Not for callers.
#pragma once

#include <tuple>

#include "kernels/checks.h"

namespace lemo::kernels {

namespace reference {
at::Tensor SwiGlu(const at::Tensor& gate, const at::Tensor& up);
std::tuple<at::Tensor, at::Tensor> SwiGluBackward(const at::Tensor& dh, const at::Tensor& gate,
                                                  const at::Tensor& up);
}  // namespace reference

namespace cpu {
at::Tensor SwiGlu(const at::Tensor& gate, const at::Tensor& up);
std::tuple<at::Tensor, at::Tensor> SwiGluBackward(const at::Tensor& dh, const at::Tensor& gate,
                                                  const at::Tensor& up);
}  // namespace cpu

inline void CheckSwiGlu(const at::Tensor& gate, const at::Tensor& up) {
  CheckFloatType("swiglu", "gate", gate);
  CheckSameKind("swiglu", "up", up, "gate", gate);
  TORCH_CHECK_VALUE(gate.sizes() == up.sizes(), "swiglu: gate is ", gate.sizes(), ", up is ",
                    up.sizes());
}

inline void CheckSwiGluBackward(const at::Tensor& dh, const at::Tensor& gate,
                                const at::Tensor& up) {
  CheckSwiGlu(gate, up);
  CheckSameKind("swiglu_backward", "dh", dh, "gate", gate);
  TORCH_CHECK_VALUE(dh.sizes() == gate.sizes(), "swiglu_backward: dh is ", dh.sizes(), ", gate is ",
                    gate.sizes());
}

}  // namespace lemo::kernels
