// Policy `predictor`: which head ranks for which choice, and acceptance test C5 of lemo-spec 16.1.
#include "worker/train/tokens/policy/predictor.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "tests/support/taped_model.h"
#include "worker/train/tokens/policy/plan.h"
#include "worker/train/tokens/scoring/attention_scores.h"

namespace lemo::train {
namespace {

using testing::RandomBatch;
using testing::TapedModel;

constexpr int64_t kBlock = 4;

TokenSettings Settings(const std::string& scope, int64_t layers) {
  lemo::v1::TokensSpec spec;
  spec.set_policy("predictor");
  spec.set_scope(scope);
  if (scope != "stack") spec.set_layers(scope == "nested" ? "auto" : "all");
  spec.set_block(kBlock);
  FillTokenDefaults(&spec);
  Violations violations;
  TokenSettings settings = MakeTokenSettings(spec, layers, &violations);
  EXPECT_TRUE(violations.empty()) << violations.ToStatus();
  return settings;
}

Predictor Draw(const DecoderConfig& config, uint64_t seed) {
  Predictor predictor;
  predictor.card.base = MakePredictorBase(config, "abc");
  predictor.card.shape = {.hidden = config.hidden,
                          .block = kBlock,
                          .slice = config.head_dim,
                          .r1 = 12,
                          .r2 = 10,
                          .p = 6};
  const auto add = [&](const std::string& name) {
    predictor.heads[name] = DrawAttentionPredictor(predictor.card.shape, seed, name);
  };
  for (int64_t i = 0; i < config.layers; ++i) {
    add(LayerHead(i));
    predictor.mlp[i] = DrawMlpPredictor(config.hidden, seed, absl::StrCat("mlp.", i));
  }
  add(kStackHead);
  return predictor;
}

struct Outcome {
  std::vector<at::Tensor> grads;
  std::vector<std::string> masks;
};

Outcome RunPlan(TapedModel& model, const MicroBatch& batch, const Predictor& predictor) {
  const TokenSettings settings = Settings("layer", model.config.layers);
  model.block_rows = kBlock;
  const DeviceBatch device = ToDevice(batch, model.decoder, kBlock);
  const std::unique_ptr<TokenPolicy> policy =
      MakePredictorPolicy(settings, model.decoder, predictor);
  TokenPlan plan(settings, *policy, model.decoder, *device.space,
                 {.keep = settings.keep,
                  .labelled = std::vector<uint8_t>(batch.rows(), 1),
                  .document_rows = {},
                  .tokens = device.tokens,
                  .labels = device.labels});
  model.Run(batch, testing::Uniform("input", model.config.layers), {.source = &plan});
  Outcome outcome;
  for (const at::Tensor& grad : model.Gradients()) outcome.grads.push_back(grad.clone());
  const lemo::v1::SelectionEvent selection = plan.Selection();
  outcome.masks.assign(selection.attention().begin(), selection.attention().end());
  return outcome;
}

// C5: with the same plans other weights of the predictor change no gradient, and it gets none.
TEST(PredictorPolicy, NoGradientToOrFromThePredictor) {
  TapedModel model("gqa", at::kFloat, testing::LoraSpec());
  const MicroBatch batch = RandomBatch(model.config, {64, 40}, 7);
  Predictor predictor = Draw(model.config, 1);
  for (auto& [name, head] : predictor.heads) {
    for (at::Tensor* matrix : head.Matrices()) matrix->requires_grad_(true);
  }
  const Outcome first = RunPlan(model, batch, predictor);
  EXPECT_NE(first.masks[0].find('\0'), std::string::npos) << "nothing was dropped";
  for (auto& [name, head] : predictor.heads) {
    for (at::Tensor* matrix : head.Matrices()) EXPECT_FALSE(matrix->grad().defined()) << name;
  }
  // Predictions three times as large rank alike.
  Predictor scaled = Draw(model.config, 1);
  for (auto& [name, head] : scaled.heads) head.q.w3 = head.q.w3 * 3;
  const Outcome same = RunPlan(model, batch, scaled);
  ASSERT_EQ(same.masks, first.masks);
  for (size_t i = 0; i < first.grads.size(); ++i) {
    EXPECT_TRUE(at::equal(same.grads[i], first.grads[i])) << model.trainables[i].name;
  }
  // And other ones do not: the comparison above is of something.
  EXPECT_NE(RunPlan(model, batch, Draw(model.config, 2)).masks, first.masks);
}

// Recall, counted here from the scores alone: of every document the best of either ranking, with
// neither its first nor its last block, which are kept anyway.
TEST(PredictorPolicy, SampledRecallIsThatOfTrueScores) {
  for (const std::string scope : {"layer", "group", "nested", "stack"}) {
    SCOPED_TRACE(scope);
    TapedModel model("gqa", at::kFloat, testing::LoraSpec());
    const int64_t layers = model.config.layers;
    const TokenSettings settings = Settings(scope, layers);
    const MicroBatch batch = RandomBatch(model.config, {64, 40}, 7);
    const DeviceBatch device = ToDevice(batch, model.decoder, kBlock);
    const std::unique_ptr<TokenPolicy> policy =
        MakePredictorPolicy(settings, model.decoder, Draw(model.config, 1));
    TokenPlan plan(settings, *policy, model.decoder, *device.space,
                   {.keep = settings.keep,
                    .labelled = std::vector<uint8_t>(batch.rows(), 1),
                    .document_rows = {},
                    .tokens = device.tokens,
                    .labels = device.labels,
                    .looks = {.measured = 0, .lessons = {}}});
    const at::Tensor stream = at::empty({batch.rows(), model.config.hidden});
    Embed(model.decoder, device.tokens, device.space->positions(),
          model.decoder.Rows(stream.size(0)), stream);
    model.block_rows = kBlock;
    const BlocksKept entering = plan.Enter(*device.space);
    model.Run(batch, testing::Uniform("input", layers), {.source = &plan, .entering = entering});
    SparsityCounts counts;
    plan.AddTo(&counts);

    const int64_t end = scope == "layer" ? 1 : scope == "group" ? 2 : layers;
    const std::vector<float> guess = policy->Scores({.space = *device.space,
                                                     .stream = stream,
                                                     .tokens = device.tokens,
                                                     .layer = 0,
                                                     .end_layer = end});
    const at::Tensor truth = MeanAttentionScores(model.decoder, 0, end, stream, *device.space, {});
    const BlockLayout& blocks = device.space->blocks();
    int64_t wanted = 0, common = 0;
    for (size_t d = 0; d + 1 < blocks.documents.size(); ++d) {
      const int64_t first = blocks.documents[d] + 1, last = blocks.documents[d + 1] - 1;
      const int64_t best = (last - first + 2 + 1) / 2 - 2;  // half of them, with both ends
      std::vector<int64_t> by_guess, by_truth;
      for (int64_t n = first; n < last; ++n) by_guess.push_back(n);
      by_truth = by_guess;
      std::sort(by_guess.begin(), by_guess.end(),
                [&](int64_t a, int64_t b) { return guess[a] > guess[b]; });
      std::sort(by_truth.begin(), by_truth.end(), [&](int64_t a, int64_t b) {
        return truth[a].item<float>() > truth[b].item<float>();
      });
      wanted += best;
      for (int64_t i = 0; i < best; ++i) {
        common += std::count(by_guess.begin(), by_guess.begin() + best, by_truth[i]);
      }
    }
    EXPECT_EQ(counts.recall.wanted, wanted);
    EXPECT_EQ(counts.recall.kept, common);
    // Sums of ranks, and what an event says.
    SparsityCounts sums;
    sums.SetNumbers(counts.Numbers(layers));
    EXPECT_EQ(sums.recall.kept, counts.recall.kept);
    EXPECT_EQ(sums.rows, counts.rows);
    const lemo::v1::TokenSparsity event = counts.Shares(1, 1, 0);
    ASSERT_EQ(event.recall_size(), 1);
    EXPECT_EQ(event.recall_layers(0), 0);
    EXPECT_DOUBLE_EQ(event.recall(0), static_cast<double>(common) / static_cast<double>(wanted));
  }
}

// Every scope asks its own head.
TEST(PredictorPolicy, HeadsByScope) {
  TapedModel model("gqa", at::kFloat, testing::LoraSpec());
  const int64_t layers = model.config.layers;
  const MicroBatch batch = RandomBatch(model.config, {64, 40}, 7);
  const DeviceBatch device = ToDevice(batch, model.decoder, kBlock);
  const at::Tensor stream = at::randn({batch.rows(), model.config.hidden});
  Predictor predictor = Draw(model.config, 1);
  predictor.heads[AboveHead(0)] = DrawAttentionPredictor(predictor.card.shape, 5, "above");
  const auto direct = [&](const std::string& head, int64_t layer) {
    const at::Tensor scores =
        AttentionScorer(predictor.heads.at(head), predictor.card.shape,
                        AttentionNormOf(model.decoder, layer), at::kFloat, at::kCPU)
            .Scores(stream, device.space->blocks(), kernels::Combine::kSymmetric);
    return std::vector<float>(scores.const_data_ptr<float>(),
                              scores.const_data_ptr<float>() + scores.numel());
  };
  const auto asked = [&](const std::string& scope, int64_t layer, int64_t end) {
    const TokenSettings settings = Settings(scope, layers);
    const auto policy = MakePredictorPolicy(settings, model.decoder, predictor);
    return policy->Scores({.space = *device.space,
                           .stream = stream,
                           .tokens = device.tokens,
                           .layer = layer,
                           .end_layer = end,
                           .whole = device.space.get(),
                           .labels = device.labels});
  };
  EXPECT_EQ(asked("layer", 1, 2), direct("layers.1", 1));
  EXPECT_EQ(asked("stack", 0, layers), direct("stack", 0));
  const std::vector<float> a = direct("layers.0", 0), b = direct("layers.1", 1);
  const std::vector<float> mean = asked("group", 0, 2);
  for (size_t i = 0; i < mean.size(); ++i) EXPECT_NEAR(mean[i], (a[i] + b[i]) / 2, 1e-5);
  ASSERT_EQ(NestedChoices(Settings("nested", layers)), std::vector<int64_t>{0});
  EXPECT_EQ(asked("nested", 0, layers), direct(AboveHead(0), 0));
  predictor.heads.erase(AboveHead(0));
  EXPECT_EQ(asked("nested", 0, layers), a);
}

TEST(PredictorPolicy, RefusesByField) {
  TapedModel model("gqa", at::kFloat, testing::LoraSpec());
  TokenSettings settings = Settings("layer", model.config.layers);
  const std::filesystem::path dir =
      std::filesystem::path(::testing::TempDir()) / "predictor_policy_test";
  settings.spec.set_predictor(dir.string());
  std::filesystem::remove_all(dir);
  const auto message = [&] {
    return std::string(MakePredictorPolicy(settings, model.decoder).status().message());
  };
  EXPECT_EQ(message().find("tokens.predictor: "), 0u) << message();
  Predictor other = Draw(model.config, 1);
  other.card.shape.block = 64;
  ASSERT_TRUE(WritePredictor(other, dir).ok());
  EXPECT_NE(message().find("block is 64, wanted is 4"), std::string::npos) << message();
  ASSERT_TRUE(WritePredictor(Draw(model.config, 1), dir).ok());
  EXPECT_EQ(message(), "");
  std::filesystem::remove_all(dir);
}

}  // namespace
}  // namespace lemo::train
