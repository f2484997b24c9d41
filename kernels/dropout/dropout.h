// Dropout whose mask is a pure function of (seed, stream, row id, column).
//
// Backward, a replay of a stage, a resumed run, another tiling or another world size all need the
// mask that the first forward drew, and storing it costs memory. A sequential generator cannot give
// it back when rows move; a counter-based one can: name each row by its place in the run (for
// example its token's number in the batch) and each use by a stream (for example layer and module),
// and seed by step.
//
// A tensor may be some neighbouring columns of a wider one, of which it then gets the mask: column
// j here is column first_column + j there.
//
//   u(seed, stream, row, column) in [0, 2^32): half of a SplitMix64 output, see dropout_mask.h
//   y[n, j] = u(seed, stream, row_ids[n], first_column + j) < round(p * 2^32) ? 0 : x[n, j] / (1 -
//   p)
//
// The mask is the same on every device and for every type. Shapes: x [N, H], row_ids int32 or int64
// [N], any values, on x's device. Types: float64, float32, bfloat16; float16 too on CUDA. The
// quotient is a product with 1 / (1 - p) in fp32 (fp64), rounded once. A dropped NaN becomes 0. p
// in [0, 1); p = 0 returns x itself. Faults of the caller throw c10::Error. x need not be
// contiguous.
//
// Arithmetic per element of b bytes: 2b bytes and about 5 integer operations, two of them 64-bit
// products shared by two columns: bound by memory with AVX-512, by the products with AVX2.
#pragma once

#include <ATen/core/Tensor.h>

namespace lemo::kernels {

struct DropoutKey {
  int64_t seed = 0;
  int64_t stream = 0;
  int64_t first_column = 0;  // at least 0
};

// y, recorded for autograd when grad mode is on and x requires grad. Saves the row ids only.
at::Tensor Dropout(const at::Tensor& x, double p, const DropoutKey& key, const at::Tensor& row_ids);

}  // namespace lemo::kernels
