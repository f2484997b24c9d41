// Training of predictors (lemo-spec section 5).
#include "worker/train/tokens/predictor/training.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <numeric>

#include "tests/support/tiny_model.h"
#include "worker/train/model/family/family.h"
#include "worker/train/model/weights.h"

namespace lemo::train {
namespace {

using testing::RandomBatch;
using testing::RelativeError;
using testing::TinyConfig;

PredictorTraining::Sequences OnCpu(const MicroBatch& batch, const Decoder& decoder, int64_t block) {
  return {at::tensor(at::ArrayRef<int32_t>(batch.tokens), at::kInt).to(at::kLong),
          RowSpace::Make(batch, decoder.config, decoder.type, decoder.device, block)};
}

// Elastic size: what stays of weights and moments is what was there, and training goes on from it.
TEST(PredictorTraining, PruningSlicesWeightsAndMomentsAlike) {
  at::manual_seed(1);
  const PredictorShape shape{.hidden = 12, .block = 4, .slice = 4, .r1 = 20, .r2 = 18, .p = 3};
  AttentionPredictor predictor = DrawAttentionPredictor(shape, 1, "head");
  Learner learner("head", predictor.Matrices(), at::kCPU, {});
  const BlockLayout blocks = MakeBlocks(std::vector<int32_t>{0, 16}, 4);
  const at::Tensor a = at::randn({16, 12});
  const auto step = [&] {
    learner.Backward(PathVectors(predictor.q, shape, a, blocks).square().sum() +
                         PathVectors(predictor.k, shape, a, blocks).sin().sum(),
                     1.0);
    return learner.Step(1e-2);
  };
  for (int i = 0; i < 3; ++i) EXPECT_GT(step(), 0.0);
  // Of k's path: first-layer neurons 0 and 7 are dead, second-layer neuron 5 is.
  DeadCounts dead{at::zeros({20}, at::kDouble), at::zeros({18}, at::kDouble), 2};
  dead.first[0] = dead.first[7] = 2;
  dead.second[5] = 1.7;
  std::vector<int64_t> first(20), second(18);
  std::iota(first.begin(), first.end(), 0);
  std::iota(second.begin(), second.end(), 0);
  first.erase(first.begin() + 7);
  first.erase(first.begin());
  second.erase(second.begin() + 5);
  const at::Tensor rows = at::tensor(first), others = at::tensor(second);
  const auto sliced = [&](const at::Tensor& w, int matrix) {
    if (matrix == 0) return w.index_select(0, rows);
    if (matrix == 2) return w.index_select(1, others);
    return w.index_select(1, at::cat({rows, rows + 20})).index_select(0, others);
  };
  std::vector<at::Tensor> values, firsts, seconds;
  for (int i = 0; i < 3; ++i) {
    values.push_back(sliced(predictor.k.Matrices()[i]->detach(), i));
    firsts.push_back(sliced(learner.optimizer().first_moments()[3 + i], i));
    seconds.push_back(sliced(learner.optimizer().second_moments()[3 + i], i));
  }
  const at::Tensor q = predictor.q.w1.detach().clone();
  EXPECT_EQ(learner.Prune(3, /*pooled=*/true, dead, 0.8), 3);
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(at::equal(predictor.k.Matrices()[i]->detach(), values[i])) << i;
    EXPECT_TRUE(at::equal(learner.optimizer().first_moments()[3 + i], firsts[i])) << i;
    EXPECT_TRUE(at::equal(learner.optimizer().second_moments()[3 + i], seconds[i])) << i;
    EXPECT_GT(firsts[i].abs().max().item<double>(), 0.0) << i;
  }
  EXPECT_TRUE(at::equal(predictor.q.w1.detach(), q));
  EXPECT_GT(step(), 0.0);
  EXPECT_FALSE(at::equal(predictor.k.w1.detach(), values[0]));
  EXPECT_EQ(learner.optimizer().steps(), 4);
}

TEST(PredictorTraining, PruningLeavesSixteenNeurons) {
  const PredictorShape shape{.hidden = 12, .r1 = 20, .r2 = 18, .p = 3};
  AttentionPredictor predictor = DrawAttentionPredictor(shape, 1, "head");
  Learner learner("head", predictor.Matrices(), at::kCPU, {});
  const DeadCounts dead{at::ones({20}, at::kDouble), at::ones({18}, at::kDouble), 1};
  EXPECT_EQ(learner.Prune(0, true, dead, 0.8), 6);
  EXPECT_EQ(predictor.q.w1.size(0), kLeastNeurons);
  EXPECT_EQ(predictor.q.w2.sizes(), (std::vector<int64_t>{16, 32}));
  EXPECT_EQ(DeadShare(1), 0.80);
  EXPECT_NEAR(DeadShare(2), 0.75, 1e-12);
  EXPECT_EQ(DeadShare(9), 0.55);
}

// On a trained model, on text that it has not seen in training: better than before, and than
// chance.
TEST(PredictorTraining, LearnsToRankTheBlocksOfATrainedModel) {
  const std::string model = LEMO_SOURCE_DIR "/tests/fixtures/stories260k";
  const DecoderConfig config = *LoadDecoderConfig(model);
  const ModelWeights weights = *LoadWeights(model, config, at::kFloat, at::kCPU);
  const Decoder decoder(config, weights);
  constexpr int64_t kBlock = 8;
  PredictorTrainingOptions options;
  options.shape = {.hidden = config.hidden,
                   .block = kBlock,
                   .slice = config.head_dim,
                   .r1 = 32,
                   .r2 = 32,
                   .p = 16};
  options.above = {2};
  options.elastic = true;
  PredictorTraining training(decoder, options);
  const auto measure = [&] {
    training.BeginMeasuring();
    for (uint64_t i = 0; i < 4; ++i) {
      training.Measure(OnCpu(RandomBatch(config, {150}, 1000 + i), decoder, kBlock));
    }
    return training.FinishMeasuring();
  };
  const std::map<std::string, HeadQuality> before = measure();
  double first = 0, last = 0;
  constexpr int kSteps = 30;
  for (int i = 0; i < kSteps; ++i) {
    const auto batch = OnCpu(RandomBatch(config, {150}, i), decoder, kBlock);
    const auto result = training.Step({batch}, 5e-3);
    ASSERT_TRUE(result.ok()) << result.status();
    if (i < 5) first += result->loss;
    if (i >= kSteps - 5) last += result->loss;
  }
  EXPECT_LT(last, 0.8 * first);
  const std::map<std::string, HeadQuality> after = measure();
  ASSERT_EQ(after.size(), static_cast<size_t>(2 * config.layers + 2));
  for (const auto& [name, quality] : after) {
    EXPECT_LT(quality.loss, before.at(name).loss) << name;
    // What makes an MLP block matter takes longer to learn than these steps.
    if (name.substr(0, 4) == "mlp.") continue;
    EXPECT_GT(quality.RecallAt(0.4), 0.45) << name;  // chance: 0.4
    EXPECT_GT(quality.spearman, 0.1) << name;
  }
  Predictor made = training.Make();
  EXPECT_EQ(made.heads.count("above.2"), 1u);
  EXPECT_GT(made.heads.at("layers.1").scale, 0.0);
  EXPECT_EQ(made.mlp.size(), static_cast<size_t>(config.layers));
}

TEST(PredictorTraining, TheLossIsThatOfTheSpecification) {
  const PredictorShape shape{.hidden = 12, .block = 4, .slice = 4, .r1 = 6, .r2 = 5, .p = 3};
  AttentionPredictor predictor = DrawAttentionPredictor(shape, 3, "head");
  predictor.scale = 2;
  at::manual_seed(2);
  const BlockLayout blocks = MakeBlocks(std::vector<int32_t>{0, 10, 14}, 4);
  const at::Tensor a = at::randn({14, 12});
  const std::vector<at::Tensor> actual = {at::rand({3, 3}).tril() * 4, at::rand({1, 1})};
  const at::Tensor q = PathVectors(predictor.q, shape, a, blocks);
  const at::Tensor k = PathVectors(predictor.k, shape, a, blocks);
  const auto smooth = [](double difference) {
    const double d = std::abs(difference);
    return d < 1 ? 0.5 * d * d : d - 0.5;
  };
  double pairs = 0;
  std::vector<double> guess(4, 0), truth(4, 0);
  for (int64_t m = 0; m < 4; ++m) {
    for (int64_t n = 0; n <= m; ++n) {
      if ((m == 3) != (n == 3)) continue;  // another document
      const double y = (m == 3 ? actual[1][0][0] : actual[0][m][n]).item<double>() / 2;
      const double guessed = q[m].dot(k[n]).item<double>();
      pairs += smooth(guessed - y) / 7;
      const double blocks_here = m == 3 ? 1 : 3;
      for (const int64_t block : m == n ? std::vector<int64_t>{n} : std::vector<int64_t>{m, n}) {
        guess[block] += guessed / blocks_here;
        truth[block] += y / blocks_here;
      }
    }
  }
  double expected = pairs;
  for (int i = 0; i < 4; ++i) expected += 0.1 * smooth(guess[i] - truth[i]) / 4;
  const PredictionLoss loss =
      AttentionLoss(predictor, shape, a, blocks, actual, kernels::Combine::kSymmetric);
  EXPECT_NEAR(loss.loss.item<double>(), expected, 1e-5 * expected);
}

}  // namespace
}  // namespace lemo::train
