#include "worker/train/tokens/scoring/attention_scores.h"

#include <ATen/ATen.h>

#include <cmath>

#include "kernels/block_scores/block_scores.h"
#include "worker/train/tokens/scoring/score_pass.h"

namespace lemo::train {
namespace {

// Adds up the layers' scores.
class Sum final : public ScoreVisitor {
 public:
  Sum(const Decoder& decoder, const RowSpace& space, const AttentionScoreOptions& options)
      : decoder_(decoder), space_(space), options_(options) {}

  void Attention(int64_t, const at::Tensor&, const at::Tensor& q, const at::Tensor& k) override {
    const at::Tensor scores =
        AttentionScores(decoder_, q, k, space_.all()->rope, space_.blocks(), options_);
    sum_ = sum_.defined() ? sum_ + scores : scores;
  }
  const at::Tensor& value() const { return sum_; }

 private:
  const Decoder& decoder_;
  const RowSpace& space_;
  const AttentionScoreOptions& options_;
  at::Tensor sum_;
};

}  // namespace

kernels::Combine CombineFromName(const std::string& name) {
  if (name.empty() || name == "symmetric") return kernels::Combine::kSymmetric;
  if (name == "column") return kernels::Combine::kColumn;
  TORCH_CHECK(name == "column_mean", "no way to combine scores is called ", name);
  return kernels::Combine::kColumnMean;
}

AttentionScoreOptions ScoreOptionsOf(const lemo::v1::TokensSpec& spec) {
  return {.combine = CombineFromName(spec.combine()), .rotated = spec.score_rope()};
}

std::vector<at::Tensor> BlockPairScores(const at::Tensor& q, const at::Tensor& k,
                                        const BlockLayout& blocks) {
  const at::NoGradGuard no_grad;
  const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(-1)));
  std::vector<at::Tensor> scores;
  for (size_t d = 0; d + 1 < blocks.documents.size(); ++d) {
    const int32_t first = blocks.documents[d];
    const int64_t row = blocks.starts[first];
    const int64_t rows = blocks.starts[blocks.documents[d + 1]] - row;
    // Of a document all blocks but the last are equally long, also where blocks have left it.
    scores.push_back(kernels::BlockScores(q.narrow(0, row, rows), k.narrow(0, row, rows),
                                          blocks.rows_of(first), scale));
  }
  return scores;
}

at::Tensor AttentionScores(const Decoder& decoder, const at::Tensor& q, const at::Tensor& k,
                           const RopeTables& rope, const BlockLayout& blocks,
                           const AttentionScoreOptions& options) {
  const at::NoGradGuard no_grad;
  const bool rotated = options.rotated;
  std::vector<at::Tensor> parts = BlockPairScores(rotated ? Rotated(decoder, q, rope) : q,
                                                  rotated ? Rotated(decoder, k, rope) : k, blocks);
  for (at::Tensor& part : parts) part = kernels::CombineBlockScores(part, options.combine);
  return at::cat(parts);
}

at::Tensor AttentionScores(const Decoder& decoder, int64_t layer, const at::Tensor& stream,
                           const RowSpace& space, const AttentionScoreOptions& options) {
  const at::NoGradGuard no_grad;
  const Qkv qk = QueriesAndKeys(decoder, decoder.layers[layer], stream);
  return AttentionScores(decoder, qk.q, qk.k, space.all()->rope, space.blocks(), options);
}

at::Tensor MeanAttentionScores(const Decoder& decoder, int64_t first_layer, int64_t end_layer,
                               const at::Tensor& stream, const RowSpace& space,
                               const AttentionScoreOptions& options) {
  const at::NoGradGuard no_grad;
  Sum sum(decoder, space, options);
  const ScorePassOptions pass = {
      .first_layer = first_layer, .end_layer = end_layer, .finish_last_layer = false};
  // One layer reads its stream and changes nothing.
  const at::Tensor scratch = end_layer - first_layer > 1 ? stream.clone() : stream;
  ScorePass(decoder, *space.all(), pass, scratch, sum);
  return sum.value() / static_cast<double>(end_layer - first_layer);
}

}  // namespace lemo::train
