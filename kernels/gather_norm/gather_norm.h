// The way into a sub-block that runs on a row list (LeMo section 7): its rows of the residual
// stream, their norm, and the copy that backward needs, in one pass.
//
//   x = src[idx]        y, rstd = RMS norm of x, as in rms_norm.h
//
// Equal in every bit to GatherRows and then RmsNormForward. Row lists, their faults and the types
// are those of rows.h; weight and eps those of rms_norm.h. Not differentiable: throws in grad mode
// for src or weight that requires grad (the tape saves x and rstd and calls RmsNormBackward).
//
// Arithmetic for K rows of H elements of b bytes: reads bKH, writes 2bKH and 4 bytes a row for 4KH
// FLOP. The two ops in its place move 4bKH: x goes out and comes back. Bound by memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace lemo::kernels {

struct NormedRows {
  at::Tensor y;     // [K, H]
  at::Tensor rstd;  // [K], float32 (float64 for float64)
  at::Tensor x;     // [K, H]
};

// `x_slot`, a contiguous [K, H] of src's type that does not overlap src, takes x and is returned as
// it; without it x is new. nullopt for idx means all rows, which are copied too. src [N, H] and
// weight [H] need not be contiguous.
NormedRows GatherRmsNorm(const at::Tensor& src, const std::optional<at::Tensor>& idx,
                         const at::Tensor& weight, double eps,
                         const std::optional<at::Tensor>& x_slot = std::nullopt);

}  // namespace lemo::kernels
