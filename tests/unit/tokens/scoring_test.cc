// True scores against loops over all pairs of rows of a plain model (lemo-spec sections 3 and 8;
// C6).
#include <gtest/gtest.h>

#include <limits>

#include "tests/support/tensor_compare.h"
#include "tests/unit/tokens/naive_scores.h"
#include "worker/train/tape/tape.h"
#include "worker/train/tokens/policy/policy.h"
#include "worker/train/tokens/scoring/attention_scores.h"
#include "worker/train/tokens/scoring/head_scores.h"
#include "worker/train/tokens/scoring/mlp_scores.h"
#include "worker/train/tokens/scoring/score_pass.h"
#include "worker/train/tokens/selection.h"

namespace lemo::train {
namespace {

using lemo::testing::Mismatch;
using namespace testing;  // NOLINT: the naive twins

constexpr int64_t kBlock = 4;
constexpr double kError = 1e-11;
// Documents that end within a block, at its end, and of one row.
const std::vector<int> kLengths = {18, 12, 1, 7};

std::shared_ptr<const RowSpace> Space(const ScoredModel& model, const MicroBatch& batch) {
  return RowSpace::Make(batch, model.config, at::kDouble, at::kCPU, kBlock);
}

class Families : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(All, Families, ::testing::Values("mha", "gqa", "qwen2", "qwen3"),
                         [](const auto& param) { return param.param; });

TEST_P(Families, AttentionScoresAreThoseOfAllPairs) {
  const ScoredModel model(GetParam());
  const MicroBatch batch = RandomBatch(model.config, kLengths, 21);
  const auto space = Space(model, batch);
  for (int64_t layer = 0; layer < model.config.layers; ++layer) {
    const at::Tensor x = NaiveStream(model, batch, layer);
    for (const bool rotated : {false, true}) {
      const MicroBatch* positions = rotated ? &batch : nullptr;
      const at::Tensor q = NaiveHeads(model, layer, "q", x, positions);
      const at::Tensor k = NaiveHeads(model, layer, "k", x, positions);
      for (const char* combine : {"symmetric", "column", "column_mean"}) {
        lemo::v1::TokensSpec spec;
        spec.set_combine(combine);
        spec.set_score_rope(rotated);
        const at::Tensor got =
            AttentionScores(model.decoder, layer, x, *space, ScoreOptionsOf(spec));
        const at::Tensor want = NaiveInformativeness(q, k, space->blocks(), combine);
        EXPECT_EQ(Mismatch(got, want, {kError, kError}), "")
            << combine << ", layer " << layer << (rotated ? ", rotated" : "");
      }
    }
  }
}

TEST_P(Families, AStreamThatBlocksHaveLeftIsScoredByItself) {
  const ScoredModel model(GetParam());
  const MicroBatch batch = RandomBatch(model.config, kLengths, 22);
  const auto space = Space(model, batch);
  BlockMask kept(space->blocks().blocks(), 1);
  kept[1] = kept[3] = kept[5] = kept[9] = 0;
  const auto left = space->Shrunk(kept);
  const at::Tensor rows = space->Indices(kept);
  const at::Tensor x = NaiveStream(model, batch, 1);
  const at::Tensor want = NaiveInformativeness(
      NaiveHeads(model, 1, "q", x, &batch).index_select(0, rows),
      NaiveHeads(model, 1, "k", x, &batch).index_select(0, rows), left->blocks(), "symmetric");
  const at::Tensor got =
      AttentionScores(model.decoder, 1, x.index_select(0, rows), *left, {.rotated = true});
  EXPECT_EQ(Mismatch(got, want, {kError, kError}), "");
}

TEST_P(Families, TheMeanOverLayersTakesTheStreamsOfADensePass) {
  const ScoredModel model(GetParam());
  const MicroBatch batch = RandomBatch(model.config, kLengths, 23);
  const auto space = Space(model, batch);
  const at::Tensor embedded = NaiveStream(model, batch, 0), before = embedded.clone();
  at::Tensor want;
  for (int64_t layer = 0; layer < model.config.layers; ++layer) {
    const at::Tensor x = NaiveStream(model, batch, layer);
    const at::Tensor one = NaiveInformativeness(NaiveHeads(model, layer, "q", x, nullptr),
                                                NaiveHeads(model, layer, "k", x, nullptr),
                                                space->blocks(), "symmetric");
    want = want.defined() ? want + one : one;
  }
  const at::Tensor got =
      MeanAttentionScores(model.decoder, 0, model.config.layers, embedded, *space, {});
  EXPECT_EQ(Mismatch(got, want / 3.0, {kError, kError}), "");
  EXPECT_TRUE(at::equal(embedded, before)) << "the stream of the step was changed";
}

// What a visitor of every kind sees.
class Recorder final : public ScoreVisitor {
 public:
  void Attention(int64_t layer, const at::Tensor& x, const at::Tensor&,
                 const at::Tensor&) override {
    calls.push_back("attention " + std::to_string(layer));
    inputs.push_back(x.clone());
  }
  void Mlp(int64_t layer, const at::Tensor& x2) override {
    calls.push_back("mlp " + std::to_string(layer));
    mlp_inputs.push_back(x2.clone());
    updates.push_back(at::zeros({0, x2.size(1)}, x2.options()));
  }
  void MlpTile(int64_t, int64_t first_row, const at::Tensor& x2, const at::Tensor& delta) override {
    EXPECT_EQ(first_row, updates.back().size(0));
    EXPECT_EQ(x2.sizes(), delta.sizes());
    updates.back() = at::cat({updates.back(), delta});
  }
  std::vector<std::string> calls;
  std::vector<at::Tensor> inputs, mlp_inputs, updates;
};

TEST_P(Families, APassShowsWhatThePlainModelComputes) {
  const ScoredModel model(GetParam());
  const MicroBatch batch = RandomBatch(model.config, kLengths, 24);
  const auto space = Space(model, batch);
  const at::Tensor stream = NaiveStream(model, batch, 1);
  Recorder recorder;
  ScorePass(model.decoder, *space->all(), {.first_layer = 1, .end_layer = 3, .mlp_tile_rows = 5},
            stream, recorder);
  EXPECT_EQ(recorder.calls,
            (std::vector<std::string>{"attention 1", "mlp 1", "attention 2", "mlp 2"}));
  EXPECT_EQ(Mismatch(stream, NaiveStream(model, batch, 3), {kError, kError}), "");
  for (const int64_t layer : {1, 2}) {
    const at::Tensor x2 = NaiveMlpStream(model, batch, layer);
    EXPECT_EQ(
        Mismatch(recorder.inputs[layer - 1], NaiveStream(model, batch, layer), {kError, kError}),
        "");
    EXPECT_EQ(Mismatch(recorder.mlp_inputs[layer - 1], x2, {kError, kError}), "");
    EXPECT_EQ(Mismatch(recorder.updates[layer - 1], NaiveStream(model, batch, layer + 1) - x2,
                       {kError, kError}),
              "");
  }
}

TEST(ScorePass, EndsWithTheLastLayersInputWhereNothingElseIsWanted) {
  const ScoredModel model("gqa");
  const MicroBatch batch = RandomBatch(model.config, kLengths, 25);
  const auto space = Space(model, batch);
  const at::Tensor stream = NaiveStream(model, batch, 0);
  Recorder recorder;
  ScorePass(model.decoder, *space->all(), {.end_layer = 3, .finish_last_layer = false}, stream,
            recorder);
  EXPECT_EQ(recorder.calls, (std::vector<std::string>{"attention 0", "mlp 0", "attention 1",
                                                      "mlp 1", "attention 2"}));
  EXPECT_EQ(Mismatch(stream, NaiveStream(model, batch, 2), {kError, kError}), "");
}

TEST(ScorePass, GivesTheTapesBits) {
  const DecoderConfig config = TinyConfig("qwen3");
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const ModelWeights weights = RandomWeights(config, 5, type, at::kCPU);
    Decoder decoder(config, weights);
    const auto tuner = *MakeTuner(LoraSpec());
    Trainables trainables = *tuner->Attach(decoder, 7);
    MoveOffZero(trainables, 9);
    const MicroBatch batch = RandomBatch(config, kLengths, 26);
    const auto space = RowSpace::Make(batch, config, type, at::kCPU, kBlock);
    const at::Tensor tokens = at::tensor(at::ArrayRef<int32_t>(batch.tokens), at::kLong);
    TapeOptions options;
    options.policies.assign(config.layers, StoragePolicy());
    options.mlp_tile_rows = 16;
    Tape tape(decoder, trainables, options, RowBounds::Dense(config.layers, batch.rows()));
    const at::Tensor want = tape.Forward(tokens, space, nullptr, {}, /*for_backward=*/false);
    const at::Tensor stream = decoder.embedding.index_select(0, tokens);
    ScoreVisitor nobody;
    ScorePass(decoder, *space->all(), {.end_layer = config.layers, .mlp_tile_rows = 16}, stream,
              nobody);
    EXPECT_TRUE(at::equal(stream, want)) << type;
  }
}

TEST_P(Families, MlpScoresAreTheLargestRelativeUpdateOfABlock) {
  const ScoredModel model(GetParam());
  const MicroBatch batch = RandomBatch(model.config, kLengths, 27);
  const auto space = Space(model, batch);
  const at::Tensor x2 = NaiveMlpStream(model, batch, 1);
  const at::Tensor delta = NaiveStream(model, batch, 2) - x2;
  const BlockLayout& blocks = space->blocks();
  at::Tensor want = at::zeros({blocks.blocks()}, at::kDouble);
  for (int64_t n = 0; n < blocks.blocks(); ++n) {
    for (int64_t row = blocks.starts[n]; row < blocks.starts[n + 1]; ++row) {
      const double update = delta[row].norm().item<double>() / x2[row].norm().item<double>();
      want[n] = std::max(want[n].item<double>(), update);
    }
  }
  EXPECT_EQ(Mismatch(MlpScores(model.decoder, 1, x2, blocks, 5), want, {kError, kError}), "");
}

TEST(BlockMaxima, ShowsANumberThatIsNone) {
  const BlockLayout blocks = MakeBlocks(std::vector<int32_t>{0, 5}, 2);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const at::Tensor values = at::tensor({nan, 1.0, 2.0, nan, -3.0}, at::kFloat);
  const at::Tensor maxima = BlockMaxima(values, blocks);
  EXPECT_EQ(Mismatch(maxima, at::tensor({nan, nan, -3.0}, at::kFloat)), "");
}

TEST_P(Families, LossAndEntropyAreThoseOfTheLogits) {
  const ScoredModel model(GetParam());
  MicroBatch batch = RandomBatch(model.config, kLengths, 28);
  for (int row = 4; row < 8; ++row) batch.labels[row] = kIgnoreLabel;
  const BlockLayout blocks = Space(model, batch)->blocks();
  const at::Tensor stream = NaiveStream(model, batch, 3);
  const at::Tensor log_p =
      PlainLogits(model.config, model.parameters, batch, model.plain).log_softmax(1);
  const at::Tensor entropy = -(log_p.exp() * log_p).sum(1);
  at::Tensor want_loss = at::zeros({blocks.blocks()}, at::kDouble);
  at::Tensor want_entropy = at::zeros_like(want_loss);
  for (int64_t n = 0; n < blocks.blocks(); ++n) {
    double loss = 0, labelled = 0;
    for (int64_t row = blocks.starts[n]; row < blocks.starts[n + 1]; ++row) {
      want_entropy[n] += entropy[row] / blocks.rows_of(n);
      if (batch.labels[row] == kIgnoreLabel) continue;
      loss -= log_p[row][batch.labels[row]].item<double>();
      ++labelled;
    }
    want_loss[n] = labelled > 0 ? loss / labelled : -1;
  }
  const at::Tensor labels = at::tensor(at::ArrayRef<int32_t>(batch.labels), at::kLong);
  EXPECT_EQ(want_loss[1].item<double>(), -1);
  EXPECT_EQ(
      Mismatch(LossScores(model.decoder, stream, labels, blocks, 3), want_loss, {kError, kError}),
      "");
  EXPECT_EQ(
      Mismatch(EntropyScores(model.decoder, stream, blocks, 3), want_entropy, {kError, kError}),
      "");
}

// Policy oracle, choice by choice.
class Oracle : public ::testing::Test {
 protected:
  Oracle()
      : model_("gqa"),
        batch_(RandomBatch(model_.config, {38, 29}, 31)),
        space_(Space(model_, batch_)) {
    settings_.policy = "oracle";
    policy_ = *MakeTokenPolicy(settings_, model_.decoder);
    for (int32_t n = 0; n < space_->blocks().blocks(); ++n) block_ids_.push_back(n);
  }

  std::vector<float> Scores(int64_t layer, int64_t end_layer, ScoreRequest::SubBlock sub_block,
                            const at::Tensor& stream) {
    return policy_->Scores({.space = *space_,
                            .stream = stream,
                            .tokens = {},
                            .layer = layer,
                            .end_layer = end_layer,
                            .sub_block = sub_block,
                            .block_ids = block_ids_});
  }
  std::vector<float> Naive(int64_t layer, int64_t end_layer) {
    at::Tensor sum;
    for (int64_t i = layer; i < end_layer; ++i) {
      const at::Tensor x = NaiveStream(model_, batch_, i);
      const at::Tensor one = NaiveInformativeness(NaiveHeads(model_, i, "q", x, nullptr),
                                                  NaiveHeads(model_, i, "k", x, nullptr),
                                                  space_->blocks(), "symmetric");
      sum = sum.defined() ? sum + one : one;
    }
    const at::Tensor host = sum.to(at::kFloat).contiguous();
    return {host.const_data_ptr<float>(), host.const_data_ptr<float>() + host.numel()};
  }
  BlockMask Kept(const std::vector<float>& scores) {
    return SelectBlocks(scores, space_->blocks(), {}, {.keep = 0.5}).kept;
  }

  const ScoredModel model_;
  const MicroBatch batch_;
  const std::shared_ptr<const RowSpace> space_;
  TokenSettings settings_;
  std::unique_ptr<TokenPolicy> policy_;
  std::vector<int32_t> block_ids_;
};

TEST_F(Oracle, KeepsTheBlocksThatTheNaiveRankingKeeps) {
  const auto attention = ScoreRequest::SubBlock::kAttention;
  for (const auto& [layer, end] : {std::pair{1, 2}, std::pair{1, 3}, std::pair{0, 3}}) {
    EXPECT_TRUE(policy_->ReadsStream());
    EXPECT_EQ(Kept(Scores(layer, end, attention, NaiveStream(model_, batch_, layer))),
              Kept(Naive(layer, end)))
        << "layers " << layer << " to " << end;
  }
  // Else the comparison would say nothing of the layers.
  EXPECT_NE(Kept(Naive(1, 2)), Kept(Naive(0, 1)));
}

TEST_F(Oracle, RanksTheMlpByItsUpdates) {
  const at::Tensor x2 = NaiveMlpStream(model_, batch_, 2);
  const at::Tensor want =
      BlockMaxima(RelativeUpdates(x2, NaiveStream(model_, batch_, 3) - x2), space_->blocks());
  const std::vector<float> got = Scores(2, 3, ScoreRequest::SubBlock::kMlp, x2);
  for (int64_t n = 0; n < want.size(0); ++n) {
    EXPECT_FLOAT_EQ(got[n], static_cast<float>(want[n].item<double>()));
  }
}

}  // namespace
}  // namespace lemo::train
