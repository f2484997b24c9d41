// Root-mean-square normalisation over the last dimension, as Hugging Face's decoders do it:
//
//   rstd = 1 / sqrt(mean(x^2) + eps)          in fp32 (fp64 for fp64 input)
//   y    = weight * cast(x * rstd)            cast: one rounding to x's type before the product
//
// Shapes: x [..., H], weight [H], rstd [...]. H is the model's hidden size or, for QK norm,
// head_dim. Types: float64, float32, bfloat16; float16 too on CUDA. weight has x's type, rstd is
// float32 (float64 for float64). Inputs need not be contiguous (they are copied if they are not);
// results are. No rows gives empty results and a zero dweight; H = 0 is refused.
//
// Faults of the caller (shape, type, device) throw c10::Error with both sides of the mismatch. NaN
// and Inf pass through as in the formulas. A row's result does not depend on the rows beside it nor
// on the number of threads: any tiling of the rows gives the same bits.
//
// Arithmetic per row of H elements of b bytes: forward reads and writes 2bH bytes for 4H FLOP;
// backward reads 2bH, writes bH for 8H FLOP, and reads 2bH again for dweight. All are bound by
// memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace lemo::kernels {

// y, recorded for autograd when grad mode is on and x or weight requires grad. Saves x, rstd and
// weight, never y or the normalised x.
at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps);

// (y, rstd) without autograd.
std::tuple<at::Tensor, at::Tensor> RmsNormForward(const at::Tensor& x, const at::Tensor& weight,
                                                  double eps);

// (dx, dweight) for the gradient `dy` of y, without autograd. dweight, in weight's type and rounded
// once after the sum over rows, is undefined unless asked for.
std::tuple<at::Tensor, at::Tensor> RmsNormBackward(const at::Tensor& dy, const at::Tensor& x,
                                                   const at::Tensor& rstd, const at::Tensor& weight,
                                                   bool need_weight_grad);

}  // namespace lemo::kernels
