// The gate of a llama MLP: h = silu(gate) * up, silu(g) = g / (1 + exp(-g)).
//
//   dgate = dh * up * s * (1 + gate * (1 - s)),  s = 1 / (1 + exp(-gate))
//   dup   = dh * silu(gate)
//
// gate, up and dh have one shape (any) and one type: float64, float32, bfloat16; float16 too on
// CUDA. Computed in fp32 (fp64 for fp64), each result rounded once. Inputs need not be contiguous;
// results are. Faults of the caller throw c10::Error. NaN passes through; gate = -Inf gives NaN (0
// * -Inf), as in the formula. Any tiling gives the same bits.
//
// Arithmetic per element of b bytes: forward 3b bytes and ~20 FLOP, backward 5b bytes and ~30 FLOP:
// bound by memory where exp is vectorised.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace lemo::kernels {

// h, recorded for autograd when grad mode is on and gate or up requires grad. Saves gate and up
// only.
at::Tensor SwiGlu(const at::Tensor& gate, const at::Tensor& up);

// h without autograd.
at::Tensor SwiGluForward(const at::Tensor& gate, const at::Tensor& up);

// (dgate, dup) without autograd.
std::tuple<at::Tensor, at::Tensor> SwiGluBackward(const at::Tensor& dh, const at::Tensor& gate,
                                                  const at::Tensor& up);

}  // namespace lemo::kernels
