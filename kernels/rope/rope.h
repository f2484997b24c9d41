// Rotary position embedding, half-split as in Hugging Face's rotate_half: with h = D / 2,
//
//   y[n, a, i]     = x[n, a, i] * cos[n, i]     - x[n, a, i + h] * sin[n, i]      i < h
//   y[n, a, i + h] = x[n, a, i + h] * cos[n, i] + x[n, a, i] * sin[n, i]
//
// The inverse takes -sin, which is the transpose of the map: the inverse rotation for plain tables,
// and the gradient also where a scaling (YaRN's attention factor) is multiplied into cos and sin.
//
// Shapes: x [N, heads, D] with even D, cos and sin [N, D/2], one row a token, already gathered for
// the rows of x. Types: x float64, float32, bfloat16 (float16 too on CUDA); tables float32, or
// float64 for float64 x. Computed in the tables' type, rounded once. Inputs need not be contiguous.
// Faults of the caller throw c10::Error. Any tiling of the rows gives the same bits.
//
// Arithmetic per token of heads*D elements of b bytes: 2b*heads*D + 8*D/2 bytes, 3*heads*D FLOP:
// bound by memory.
#pragma once

#include <ATen/core/Tensor.h>

namespace lemo::kernels {

// A new tensor like x, recorded for autograd when grad mode is on and x requires grad. Saves cos
// and sin only, so q and k share one pair of tables. The tables get no gradient.
at::Tensor Rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

// The rotation or its inverse without autograd.
at::Tensor RopeForward(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                       bool inverse);

}  // namespace lemo::kernels
