// The versions of block_scores behind the dispatcher, and the checks they share. Not for callers.
#pragma once

#include <cmath>

#include "kernels/checks.h"

namespace lemo::kernels {

namespace reference {
at::Tensor BlockScores(const at::Tensor& q, const at::Tensor& k, int64_t block_rows, double scale);
}  // namespace reference

namespace cpu {
at::Tensor BlockScores(const at::Tensor& q, const at::Tensor& k, int64_t block_rows, double scale);
}  // namespace cpu

inline void CheckBlockScores(const at::Tensor& q, const at::Tensor& k, int64_t block_rows,
                             double scale) {
  constexpr const char* kOp = "block_scores";
  CheckFloatType(kOp, "q", q);
  CheckSameKind(kOp, "k", k, "q", q);
  TORCH_CHECK_VALUE(q.dim() == 3 && q.size(1) > 0 && q.size(2) > 0, kOp,
                    ": q must be [N, A, D] with A and D above 0; its shape is ", q.sizes());
  TORCH_CHECK_VALUE(k.dim() == 3 && k.size(0) == q.size(0) && k.size(2) == q.size(2) &&
                        k.size(1) > 0 && q.size(1) % k.size(1) == 0,
                    kOp, ": k must be [", q.size(0), ", G, ", q.size(2), "] with G a divisor of ",
                    q.size(1), "; its shape is ", k.sizes());
  TORCH_CHECK_VALUE(block_rows >= 1, kOp, ": block_rows must be above 0; it is ", block_rows);
  TORCH_CHECK_VALUE(std::isfinite(scale), kOp, ": scale must be finite; it is ", scale);
}

// Blocks of a document.
inline int64_t BlockCount(int64_t rows, int64_t block_rows) {
  return rows == 0 ? 0 : (rows - 1) / block_rows + 1;
}

}  // namespace lemo::kernels
