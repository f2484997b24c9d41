// The networks of lemo-spec sections 4 and 8 against their definitions.
#include "worker/train/tokens/predictor/network.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/support/tiny_model.h"

namespace lemo::train {
namespace {

using testing::RelativeError;

constexpr int64_t kHidden = 24;

PredictorShape Shape(bool flat_slice) {
  return {.flat_slice = flat_slice,
          .hidden = kHidden,
          .block = 8,
          .slice = 6,
          .r1 = 10,
          .r2 = 7,
          .p = 5};
}

// Two packed documents, both with a short last block, and one that is a short block alone.
BlockLayout Packed() { return MakeBlocks(std::vector<int32_t>{0, 29, 72, 75}, 8); }

at::Tensor Rows(int64_t rows, at::ScalarType type = at::kFloat) {
  at::manual_seed(3);
  return (at::randn({rows, kHidden}, at::kDouble) * 3 + 0.5).to(type);
}

InputNorm Norm(bool layer_norm, at::ScalarType type = at::kFloat) {
  at::manual_seed(4);
  InputNorm norm{.gain = at::rand({kHidden}, at::kDouble).add(0.5).to(type), .eps = 1e-5};
  if (layer_norm) norm.bias = at::randn({kHidden}, at::kDouble).to(type);
  return norm;
}

// I by the formulas of section 3, from the whole matrix M of every document.
at::Tensor BySummation(const at::Tensor& q, const at::Tensor& k, const BlockLayout& blocks,
                       kernels::Combine combine) {
  std::vector<at::Tensor> parts;
  for (size_t d = 0; d + 1 < blocks.documents.size(); ++d) {
    const int64_t first = blocks.documents[d], count = blocks.documents[d + 1] - first;
    const at::Tensor m = q.narrow(0, first, count).matmul(k.narrow(0, first, count).t());
    for (int64_t n = 0; n < count; ++n) {
      at::Tensor sum = m.narrow(0, n, count - n).select(1, n).sum();
      if (combine == kernels::Combine::kSymmetric) {
        sum = (sum + m.select(0, n).narrow(0, 0, n).sum()) / static_cast<double>(count);
      }
      parts.push_back(sum);
    }
  }
  return at::stack(parts);
}

// The first matrix on a normalised copy, the pool by loops.
at::Tensor ByLoops(const PredictorPath& path, const at::Tensor& a, const BlockLayout& blocks) {
  const at::Tensor u = a.matmul(path.w1.t()).relu();
  std::vector<at::Tensor> vectors;
  for (int64_t n = 0; n < blocks.blocks(); ++n) {
    const at::Tensor rows = u.narrow(0, blocks.starts[n], blocks.rows_of(n));
    const at::Tensor z = at::cat({rows.mean(0), rows.amax(0)});
    vectors.push_back(path.w3.matmul(path.w2.matmul(z).relu()));
  }
  return at::stack(vectors);
}

// C7: linear-time informativeness against the summed matrix, both ways to combine, packed
// documents.
TEST(PredictorNetwork, InformativenessInLinearTimeIsTheSumOfPredictions) {
  const BlockLayout blocks = Packed();
  const at::Tensor x = Rows(blocks.rows());
  for (const bool flat_slice : {false, true}) {
    const PredictorShape shape = Shape(flat_slice);
    AttentionPredictor predictor = DrawAttentionPredictor(shape, 1, "layers.0");
    predictor.scale = 2.5;
    const AttentionScorer scorer(predictor, shape, Norm(false), at::kFloat, at::kCPU);
    const AttentionScorer::Vectors vectors = scorer.BlockVectors(x, blocks);
    ASSERT_EQ(vectors.q.size(1), flat_slice ? 4 * shape.p : shape.p);
    for (const auto combine : {kernels::Combine::kSymmetric, kernels::Combine::kColumn}) {
      const at::Tensor expected = BySummation(vectors.q, vectors.k, blocks, combine) * 2.5;
      EXPECT_LE(RelativeError(scorer.Scores(x, blocks, combine), expected), 1e-5)
          << "flat_slice " << flat_slice << ", combine " << static_cast<int>(combine);
    }
  }
}

TEST(PredictorNetwork, FoldedNormIsTheNormalisedCopy) {
  const BlockLayout blocks = Packed();
  const PredictorShape shape = Shape(false);
  const AttentionPredictor predictor = DrawAttentionPredictor(shape, 2, "layers.0");
  const MlpPredictor mlp = DrawMlpPredictor(kHidden, 2, "mlp.0");
  for (const bool layer_norm : {false, true}) {
    for (const auto type : {at::kFloat, at::kDouble}) {
      const double bound = type == at::kFloat ? 1e-5 : 1e-12;
      const at::Tensor x = Rows(blocks.rows(), type);
      const InputNorm norm = Norm(layer_norm, type);
      const at::Tensor mean = layer_norm ? x.mean(1, true) : at::zeros({1}, x.options());
      const at::Tensor centred = x - mean;
      at::Tensor a = centred / (centred.square().mean(1, true) + norm.eps).sqrt() * norm.gain;
      if (layer_norm) a = a + norm.bias;
      EXPECT_LE(RelativeError(norm.Apply(x), a), bound);
      const auto in_type = [type](PredictorPath path) {
        for (at::Tensor* matrix : path.Matrices()) *matrix = matrix->to(type);
        return path;
      };
      const AttentionScorer scorer(predictor, shape, norm, type, at::kCPU);
      const AttentionScorer::Vectors vectors = scorer.BlockVectors(x, blocks);
      EXPECT_LE(RelativeError(vectors.q, ByLoops(in_type(predictor.q), a, blocks)), bound);
      EXPECT_LE(RelativeError(vectors.k, ByLoops(in_type(predictor.k), a, blocks)), bound);
      EXPECT_LE(RelativeError(PathVectors(in_type(predictor.q), shape, a, blocks), vectors.q),
                bound);
      const MlpScorer mlp_scorer(mlp, norm, type, at::kCPU);
      const MlpPredictor wide{mlp.w1.to(type), mlp.w2.to(type), mlp.bias.to(type)};
      EXPECT_LE(RelativeError(mlp_scorer.Scores(x, blocks), MlpLogScores(wide, a, blocks)), bound);
    }
  }
}

// The copies that run in bf16 rank as the fp32 ones do, but for its rounding.
TEST(PredictorNetwork, BFloat16CopiesStayClose) {
  const BlockLayout blocks = Packed();
  const PredictorShape shape = Shape(false);
  const AttentionPredictor predictor = DrawAttentionPredictor(shape, 2, "layers.0");
  const at::Tensor x = Rows(blocks.rows(), at::kBFloat16);
  const AttentionScorer low(predictor, shape, Norm(false, at::kBFloat16), at::kBFloat16, at::kCPU);
  const AttentionScorer high(predictor, shape, Norm(false, at::kBFloat16), at::kFloat, at::kCPU);
  const auto combine = kernels::Combine::kSymmetric;
  EXPECT_EQ(low.Scores(x, blocks, combine).scalar_type(), at::kFloat);
  EXPECT_LE(
      RelativeError(low.Scores(x, blocks, combine), high.Scores(x.to(at::kFloat), blocks, combine)),
      2e-2);
}

// A slice holds a head's columns of all rows of a block; short blocks end with zeros.
TEST(PredictorNetwork, FlatSlicesOfABlock) {
  const PredictorShape shape = Shape(true);
  const BlockLayout blocks = MakeBlocks(std::vector<int32_t>{0, 11}, 8);
  const AttentionPredictor predictor = DrawAttentionPredictor(shape, 5, "layers.0");
  const at::Tensor a = Rows(11);
  const at::Tensor vectors = PathVectors(predictor.q, shape, a, blocks);
  const at::Tensor slice =
      at::cat({a.slice(0, 8, 11).slice(1, 6, 12), at::zeros({5, 6})}).reshape({48});
  const at::Tensor expected =
      predictor.q.w3.matmul(predictor.q.w2.matmul(predictor.q.w1.matmul(slice).relu()).relu());
  EXPECT_LE(RelativeError(vectors[1].slice(0, 5, 10), expected), 1e-5);
}

TEST(PredictorNetwork, StartsFromSeedAndName) {
  const PredictorShape shape = Shape(false);
  const AttentionPredictor one = DrawAttentionPredictor(shape, 1, "layers.0");
  EXPECT_TRUE(at::equal(one.q.w2, DrawAttentionPredictor(shape, 1, "layers.0").q.w2));
  EXPECT_FALSE(at::equal(one.q.w2, DrawAttentionPredictor(shape, 1, "layers.1").q.w2));
  EXPECT_FALSE(at::equal(one.q.w2, DrawAttentionPredictor(shape, 2, "layers.0").q.w2));
  EXPECT_FALSE(at::equal(one.q.w1, one.k.w1));
}

}  // namespace
}  // namespace lemo::train
