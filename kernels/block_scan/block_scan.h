// From pairs of blocks to one informativeness a block (LeMo sections 3 and 4).
//
//   symmetric     I_n = (1/Nb) (sum_{m>=n} M_mn + sum_{m<n} M_nm)   every causal pair credits both
//                                                                   its blocks: Nb terms each
//   column        I_n = sum_{m>=n} M_mn                             the literal paper
//   column_mean   I_n = column / (Nb - n)                           n from 0
//
// Sums run over the blocks of one document, Nb is their number and n counts from its first.
//
// For predicted scores M_mn = q_m . k_n the sums factor, so M is never built:
//
//   Q_n = sum_{m>=n} q_m,  K_n = sum_{m<n} k_m      symmetric: I_n = (k_n . Q_n + q_n . K_n) / Nb
//
// Nothing is clamped: a max(0, .) on M_mn would break the factorisation.
//
// Shapes: q, k [B, p]; documents [D + 1] int32 or int64: the first block of every document, then B;
// documents[0] is 0; empty documents are allowed. The result is [B], float32 (float64 for float64).
// Types: q, k float64, float32, bfloat16 (float16 too on CUDA). Scans run in double on the CPU, in
// the result's type on CUDA, and the sum of a row in the result's type. Inputs need not be
// contiguous. Faults of the caller throw c10::Error with both sides; the CPU versions check
// documents, the CUDA versions only where compiled without NDEBUG. NaN and Inf spread as in the
// formulas, never to another document. The number of threads changes no bit.
//
// Arithmetic for elements of b bytes: 2 b B p bytes read, 6 B p FLOP forward; backward 8 B p FLOP
// and 2 b B p bytes written besides. B is tens to thousands and p is 64: latency is all it costs.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace lemo::kernels {

// The numbers are what the torch operators take.
enum class Combine { kSymmetric = 0, kColumn = 1, kColumnMean = 2 };

// I of predicted scores, recorded for autograd when grad mode is on and q or k requires grad. Saves
// q, k and documents.
at::Tensor BlockInformativeness(const at::Tensor& q, const at::Tensor& k,
                                const at::Tensor& documents, Combine combine = Combine::kSymmetric);

// Without autograd.
at::Tensor BlockInformativenessForward(const at::Tensor& q, const at::Tensor& k,
                                       const at::Tensor& documents, Combine combine);

// (dq, dk), in q's type, for the gradient `di` [B] of I (I's type).
std::tuple<at::Tensor, at::Tensor> BlockInformativenessBackward(const at::Tensor& di,
                                                                const at::Tensor& q,
                                                                const at::Tensor& k,
                                                                const at::Tensor& documents,
                                                                Combine combine);

// I [Nb] of the scores M [Nb, Nb] of one document, in M's type, which is float32 or float64; what
// is above the diagonal is not read. ATen operators: any device, differentiable.
at::Tensor CombineBlockScores(const at::Tensor& scores, Combine combine = Combine::kSymmetric);

}  // namespace lemo::kernels
