// What a predictor sees of a block of rows (LeMo section 4): mean and maximum, over the block's
// rows, of the first layer's output after ReLU.
//
//   v_ij = max(0, row_scale_i * u_ij)           row_scale_i = 1 where none is given
//   z_b  = [mean of v_i over the rows of b ; max of v_i over the rows of b]
//
// With a row_scale of 1 / rms the normalised input needs no copy: ReLU(rstd * y) = rstd * ReLU(y)
// for rstd > 0, so u is the product of the raw rows with a weight that has the norm's gain folded
// in.
//
// Shapes: u [N, r], starts [B + 1] int32 or int64: the first row of every block, then N; starts[0]
// is 0 and no block is empty. row_scale [N]. The result is [B, 2r]. Types: u float64, float32,
// bfloat16 (float16 too on CUDA); row_scale and the result float32 (float64 for float64 u), and so
// is the arithmetic. Inputs need not be contiguous. No blocks give [0, 2r].
//
// Faults of the caller throw c10::Error with both sides; the CPU versions check starts, the CUDA
// versions only where compiled without NDEBUG, and otherwise clip them to [0, N]. A NaN of a column
// makes that column's mean and maximum NaN in its block. The number of threads changes no bit.
//
// Arithmetic for elements of b bytes: forward reads b N r (+ 4 N) bytes and writes 8 B r, 4 FLOP an
// element; backward reads b N r twice (the second time a block of it from a near cache) and writes
// b N r. Both are bound by memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace lemo::kernels {

// z, recorded for autograd when grad mode is on and u requires grad. Saves u, starts and row_scale.
// row_scale gets no gradient: one that requires grad is refused in grad mode.
at::Tensor BlockMeanMax(const at::Tensor& u, const at::Tensor& starts,
                        const std::optional<at::Tensor>& row_scale = std::nullopt);

// Without autograd.
at::Tensor BlockMeanMaxForward(const at::Tensor& u, const at::Tensor& starts,
                               const std::optional<at::Tensor>& row_scale);

// du, in u's type, for the gradient `dz` [B, 2r] of z (z's type). The maximum's goes to the first
// row that has it. Where v is 0 the ReLU passes nothing; where it is NaN neither.
at::Tensor BlockMeanMaxBackward(const at::Tensor& dz, const at::Tensor& u, const at::Tensor& starts,
                                const std::optional<at::Tensor>& row_scale);

}  // namespace lemo::kernels
