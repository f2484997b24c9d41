// The versions of block_select behind the dispatcher, and the checks they share. Not for callers.
#pragma once

#include "kernels/block_pool/block_pool_internal.h"
#include "kernels/block_scan/block_scan_internal.h"
#include "kernels/checks.h"

namespace lemo::kernels {

namespace reference {
at::Tensor SelectTopBlocks(const at::Tensor& scores, const at::Tensor& mandatory,
                           const at::Tensor& documents, const at::Tensor& counts);
at::Tensor RowsOfBlocks(const at::Tensor& starts, const at::Tensor& mask, int64_t rows,
                        at::ScalarType type);
}  // namespace reference

namespace cpu {
at::Tensor SelectTopBlocks(const at::Tensor& scores, const at::Tensor& mandatory,
                           const at::Tensor& documents, const at::Tensor& counts);
at::Tensor RowsOfBlocks(const at::Tensor& starts, const at::Tensor& mask, int64_t rows,
                        at::ScalarType type);
}  // namespace cpu

inline void CheckMask(const char* op, const char* name, const at::Tensor& mask, int64_t blocks,
                      at::Device device) {
  TORCH_CHECK_VALUE(mask.scalar_type() == at::kByte && mask.dim() == 1 && mask.size(0) == blocks &&
                        mask.device() == device,
                    op, ": ", name, " must be Byte [", blocks, "] on ", device, "; it is ",
                    mask.scalar_type(), " ", mask.sizes(), " on ", mask.device());
}

inline void CheckSelectTopBlocks(const at::Tensor& scores, const at::Tensor& mandatory,
                                 const at::Tensor& documents, const at::Tensor& counts) {
  constexpr const char* kOp = "select_top_blocks";
  TORCH_CHECK_VALUE(scores.scalar_type() == at::kFloat && scores.dim() == 1, kOp,
                    ": scores must be Float [B]; they are ", scores.scalar_type(), " ",
                    scores.sizes());
  CheckMask(kOp, "mandatory", mandatory, scores.size(0), scores.device());
  CheckIndexList(kOp, "documents", documents, -1, scores.device());
  TORCH_CHECK_VALUE(documents.size(0) >= 1, kOp, ": documents is empty; none have documents [0]");
  CheckIndexList(kOp, "counts", counts, documents.size(0) - 1, scores.device());
}

inline void CheckRowsOfBlocks(const at::Tensor& starts, const at::Tensor& mask, int64_t rows,
                              at::ScalarType type) {
  constexpr const char* kOp = "rows_of_blocks";
  CheckIndexList(kOp, "starts", starts, -1, mask.device());
  TORCH_CHECK_VALUE(starts.size(0) >= 1, kOp, ": starts is empty; no blocks have starts [0]");
  CheckMask(kOp, "mask", mask, starts.size(0) - 1, starts.device());
  TORCH_CHECK_VALUE(rows >= -1, kOp, ": rows must be -1 or more; it is ", rows);
  TORCH_CHECK_VALUE(type == at::kInt || type == at::kLong, kOp,
                    ": the type of rows must be Int or Long; it is ", type);
}

}  // namespace lemo::kernels
