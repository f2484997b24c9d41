// The versions of block_scan behind the dispatcher, and the checks they share. Not for callers.
#pragma once

#include <tuple>

#include "kernels/block_scan/block_scan.h"
#include "kernels/checks.h"

namespace lemo::kernels {

namespace reference {
at::Tensor BlockInformativeness(const at::Tensor& q, const at::Tensor& k,
                                const at::Tensor& documents, int64_t combine);
std::tuple<at::Tensor, at::Tensor> BlockInformativenessBackward(const at::Tensor& di,
                                                                const at::Tensor& q,
                                                                const at::Tensor& k,
                                                                const at::Tensor& documents,
                                                                int64_t combine);
at::Tensor CombineBlockScores(const at::Tensor& scores, int64_t combine);
}  // namespace reference

namespace cpu {
at::Tensor BlockInformativeness(const at::Tensor& q, const at::Tensor& k,
                                const at::Tensor& documents, int64_t combine);
std::tuple<at::Tensor, at::Tensor> BlockInformativenessBackward(const at::Tensor& di,
                                                                const at::Tensor& q,
                                                                const at::Tensor& k,
                                                                const at::Tensor& documents,
                                                                int64_t combine);
}  // namespace cpu

inline void CheckCombine(const char* op, int64_t combine) {
  TORCH_CHECK_VALUE(combine >= 0 && combine <= 2, op,
                    ": combine must be 0 (symmetric), 1 (column) or 2 (column_mean); it is ",
                    combine);
}

inline void CheckBlockInformativeness(const at::Tensor& q, const at::Tensor& k,
                                      const at::Tensor& documents, int64_t combine) {
  constexpr const char* kOp = "block_informativeness";
  CheckFloatType(kOp, "q", q);
  CheckSameKind(kOp, "k", k, "q", q);
  TORCH_CHECK_VALUE(q.dim() == 2 && q.sizes() == k.sizes(), kOp,
                    ": q and k must both be [B, p]; they are ", q.sizes(), " and ", k.sizes());
  CheckIndexList(kOp, "documents", documents, -1, q.device());
  TORCH_CHECK_VALUE(documents.size(0) >= 1, kOp, ": documents is empty; none have documents [0]");
  CheckCombine(kOp, combine);
}

inline void CheckBlockInformativenessBackward(const at::Tensor& di, const at::Tensor& q,
                                              const at::Tensor& k, const at::Tensor& documents,
                                              int64_t combine) {
  CheckBlockInformativeness(q, k, documents, combine);
  TORCH_CHECK_VALUE(di.scalar_type() == WideType(q.scalar_type()) && di.device() == q.device() &&
                        di.dim() == 1 && di.size(0) == q.size(0),
                    "block_informativeness_backward: di must be ", WideType(q.scalar_type()), " [",
                    q.size(0), "] on ", q.device(), "; it is ", di.scalar_type(), " ", di.sizes(),
                    " on ", di.device());
}

inline void CheckCombineBlockScores(const at::Tensor& scores, int64_t combine) {
  constexpr const char* kOp = "combine_block_scores";
  TORCH_CHECK_VALUE(scores.scalar_type() == at::kFloat || scores.scalar_type() == at::kDouble, kOp,
                    ": scores must be Float or Double; they are ", scores.scalar_type());
  TORCH_CHECK_VALUE(scores.dim() == 2 && scores.size(0) == scores.size(1), kOp,
                    ": scores must be [Nb, Nb]; their shape is ", scores.sizes());
  CheckCombine(kOp, combine);
}

// Throws unless the entries are 0 = documents[0] <= ... <= documents[count] = blocks.
template <typename Index>
void CheckDocuments(const char* op, const Index* documents, int64_t count, int64_t blocks) {
  TORCH_CHECK_INDEX(documents[0] == 0, op, ": documents[0] must be 0; it is ", documents[0]);
  TORCH_CHECK_INDEX(documents[count] == blocks, op, ": the last of documents must be ", blocks,
                    "; it is ", documents[count]);
  for (int64_t d = 0; d < count; ++d) {
    TORCH_CHECK_INDEX(documents[d] <= documents[d + 1], op, ": documents must ascend; after ",
                      documents[d], " comes ", documents[d + 1]);
  }
}

// What the sum of block n of a document of `count` blocks is multiplied with.
inline double CombineFactor(int64_t combine, int64_t n, int64_t count) {
  switch (static_cast<Combine>(combine)) {
    case Combine::kSymmetric:
      return 1.0 / static_cast<double>(count);
    case Combine::kColumn:
      return 1.0;
    case Combine::kColumnMean:
      return 1.0 / static_cast<double>(count - n);
  }
  return 0;
}

}  // namespace lemo::kernels
