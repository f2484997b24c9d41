// Moving a row list between the residual stream and a sub-block: x = R[T] and R[T] += f(x).
//
// A row list `idx` is int32 or int64 [K] on the device of the data, strictly ascending, every entry
// in [0, N). nullopt means all rows, in order, and costs no index at all. Because no row occurs
// twice, scatter-add needs no atomics and is deterministic.
//
// An index that is out of range or not ascending is the caller's mistake: the CPU versions throw
// c10::Error and leave dst untouched (the check reads 4 or 8 bytes a row); the CUDA versions check
// only when compiled without NDEBUG (a device assertion), and otherwise skip rows out of range
// (gather writes NaN there, so the mistake shows) and are undefined for duplicates.
//
// Types: float64, float32, bfloat16; float16 too on CUDA. H may be any size including odd ones and
// 0. Neither function is differentiable: calling one in grad mode with a tensor that requires grad
// throws.
//
// Arithmetic for K rows of H elements of b bytes: gather moves 2bKH bytes; scatter-add 3bKH bytes
// and KH FLOP. Both are bound by memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace lemo::kernels {

// src[idx]: a new contiguous [K, H] from src [N, H]; a copy of src for nullopt. src need not be
// contiguous.
at::Tensor GatherRows(const at::Tensor& src, const std::optional<at::Tensor>& idx);

// dst[idx] += delta, in place. dst [N, H] is contiguous, delta [K, H] has its type and need not be
// contiguous; delta may not overlap dst. The sum is made in fp32 (fp64) and rounded once to dst's
// type.
void ScatterAddRows(const at::Tensor& dst, const std::optional<at::Tensor>& idx,
                    const at::Tensor& delta);

}  // namespace lemo::kernels
