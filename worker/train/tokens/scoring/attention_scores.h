// True informativeness of attention blocks (lemo-spec section 3), from queries and keys.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "kernels/block_scan/block_scan.h"
#include "lemo/v1/run_spec.pb.h"
#include "worker/train/model/decoder.h"
#include "worker/train/tokens/blocks.h"
#include "worker/train/tokens/row_space.h"

namespace lemo::train {

struct AttentionScoreOptions {
  kernels::Combine combine = kernels::Combine::kSymmetric;
  // Of rotated queries and keys. Off by default: who predicts from content alone cannot see how far
  // apart two rows are.
  bool rotated = false;
};

// `symmetric`, `column` or `column_mean`; "" is the first. A mistake of the caller otherwise.
kernels::Combine CombineFromName(const std::string& name);

// As tokens.combine and tokens.score_rope say; what is not set has its default.
AttentionScoreOptions ScoreOptionsOf(const lemo::v1::TokensSpec& spec);

// M of every document, [Nb, Nb] fp32 (fp64 for fp64), by the rows of `blocks`: q [rows, A, D],
// k [rows, G, D]. Scores are scaled by 1 / sqrt(D).
std::vector<at::Tensor> BlockPairScores(const at::Tensor& q, const at::Tensor& k,
                                        const BlockLayout& blocks);

// I of every block of every document, [blocks], in M's type. The q and k that a ScoreVisitor sees;
// `rope` is read with options.rotated only.
at::Tensor AttentionScores(const Decoder& decoder, const at::Tensor& q, const at::Tensor& k,
                           const RopeTables& rope, const BlockLayout& blocks,
                           const AttentionScoreOptions& options);

// The same from the stream that the layer reads, one row of `space` each.
at::Tensor AttentionScores(const Decoder& decoder, int64_t layer, const at::Tensor& stream,
                           const RowSpace& space, const AttentionScoreOptions& options);

// The mean of the layers' I, from the stream [rows, H] that the first of them reads: a dense
// forward pass over all but the last. `stream` stays as it is.
at::Tensor MeanAttentionScores(const Decoder& decoder, int64_t first_layer, int64_t end_layer,
                               const at::Tensor& stream, const RowSpace& space,
                               const AttentionScoreOptions& options);

}  // namespace lemo::train
