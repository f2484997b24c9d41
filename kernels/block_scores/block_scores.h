// Informativeness of pairs of attention blocks (LeMo section 3), for the N rows of ONE document cut
// in Nb = ceil(N / block_rows) blocks, the last one as long as what is left:
//
//   R_ij = (1/A) sum_h max(0, scale * q_i^h . k_j^h)               h = 0..A-1, kv head h / (A/G)
//   M_mn = max of R_ij over i in block m, j in block n, j <= i      m >= n; 0 above the diagonal
//
// The sum over heads comes before the max, so no head can be finished by itself; the heads are
// looped inside a tile of pairs and only the tile's maxima leave it.
//
// Shapes: q [N, A, D], k [N, G, D], A a multiple of G; the result [Nb, Nb]. Types: float64,
// float32, bfloat16 (float16 too on CUDA), both the same; the result is float32 (float64 for
// float64) and so are products and sums: bf16 inputs are widened, never multiplied to bf16 results.
// Inputs need not be contiguous. No rows give [0, 0]. Not differentiable: throws in grad mode for
// inputs that require grad. Faults of the caller (shape, type, device, block_rows < 1, scale not
// finite) throw c10::Error with both sides.
//
// A NaN product makes M_mn NaN for its pair of blocks and no other; so does 0 * Inf. Inf gives Inf.
// A masked pair (j > i) is never seen. The number of threads changes no bit.
//
// Arithmetic of the causal half: A D N^2 FLOP of products and 1.5 A N^2 of scale, max and sum;
// reads (A + G) D N elements once a tile of 256 rows, writes 4 Nb^2 bytes. Bound by the
// products: 17 GFLOP a layer at N = 8192, A D = 256. Memory beside the result: on the CPU 0.5 MiB a
// thread, and for bf16 256 (A + G) D floats (0.6 MiB at A D = 512); on CUDA none.
#pragma once

#include <ATen/core/Tensor.h>

namespace lemo::kernels {

at::Tensor BlockScores(const at::Tensor& q, const at::Tensor& k, int64_t block_rows, double scale);

}  // namespace lemo::kernels
