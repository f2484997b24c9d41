// Online distillation: what a lesson is, whom it reaches, and that its state is whole.
#include "worker/train/tokens/policy/online.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/taped_model.h"
#include "worker/train/tokens/policy/plan.h"
#include "worker/train/tokens/predictor/training.h"

namespace lemo::train {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using testing::RandomBatch;
using testing::TapedModel;

constexpr int64_t kBlock = 4;
constexpr uint64_t kSeed = 3;

TokenSettings Settings(const std::string& scope, int64_t layers, int layers_per_step,
                       const std::vector<double>& keep = {}) {
  lemo::v1::TokensSpec spec;
  spec.set_policy("predictor");
  spec.set_scope(scope);
  spec.mutable_keep()->Add(keep.begin(), keep.end());
  if (keep.size() <= 1 && scope != "stack") spec.set_layers("all");
  spec.set_block(kBlock);
  spec.mutable_online()->set_layers_per_step(layers_per_step);
  FillTokenDefaults(&spec);
  Violations violations;
  TokenSettings settings = MakeTokenSettings(spec, layers, &violations);
  EXPECT_TRUE(violations.empty()) << violations.ToStatus();
  return settings;
}

// A model, its batch, and a policy that begins with a new predictor.
struct Class {
  explicit Class(const TokenSettings& given)
      : settings(given),
        policy(settings, model.decoder, FreshPredictor(settings, model.config, kSeed)),
        device(ToDevice(batch, model.decoder, kBlock)) {
    model.block_rows = kBlock;
    model.mlp_tile_rows = 0;  // as a score pass: tiles round differently
  }

  // A pass with the shares `keep`, from which the heads of these layers learn; its kept blocks.
  std::vector<std::string> Pass(const std::vector<double>& keep,
                                const std::vector<int64_t>& lessons) {
    TokenPlan plan(settings, policy, model.decoder, *device.space,
                   {.keep = keep,
                    .labelled = std::vector<uint8_t>(batch.rows(), 1),
                    .document_rows = {},
                    .tokens = device.tokens,
                    .labels = device.labels,
                    .looks = {.measured = {}, .lessons = lessons}});
    const BlocksKept entering = plan.Enter(*device.space);
    model.Run(batch, testing::Uniform("input", model.config.layers),
              {.source = &plan, .entering = entering});
    const lemo::v1::SelectionEvent selection = plan.Selection();
    return {selection.attention().begin(), selection.attention().end()};
  }

  TapedModel model{"gqa", at::kFloat, testing::LoraSpec()};
  MicroBatch batch = RandomBatch(model.config, {64, 40}, 7);
  TokenSettings settings;
  OnlinePolicy policy;
  DeviceBatch device;
};

int64_t Layers() { return testing::TinyConfig("gqa").layers; }

// The same bits as a step of a run that trains predictors, on the same rows: from the streams that
// the tape makes of all rows, and for joint heads from a pass beside it.
TEST(Online, ALessonIsAStepOfPredictorTraining) {
  for (const std::string scope : {"layer", "nested", "stack"}) {
    SCOPED_TRACE(scope);
    std::vector<double> keep = {0.5};
    if (scope == "nested") keep.assign(Layers(), 0.5);
    Class online(Settings(scope, Layers(), 8, keep));
    PredictorTrainingOptions options;
    options.shape = online.policy.Make().card.shape;
    options.seed = kSeed;
    options.mlp = false;
    options.above = {0};
    PredictorTraining offline(online.model.decoder, options);
    for (int64_t step = 0; step < 3; ++step) {
      online.Pass(std::vector<double>(Layers(), 1.0), online.policy.LessonsAt(step, true));
      online.policy.Update();
      ASSERT_TRUE(offline.Step({{online.device.tokens, online.device.space}}, 1e-3).ok());
    }
    Predictor taught = online.policy.Make(), trained = offline.Make();
    EXPECT_EQ(taught.card.steps, 3);
    EXPECT_EQ(taught.card.loss_curve.size(), 3u);
    ASSERT_FALSE(taught.heads.empty());
    Predictor fresh = FreshPredictor(online.settings, online.model.config, kSeed);
    for (auto& [name, head] : taught.heads) {
      EXPECT_EQ(head.scale, trained.heads.at(name).scale) << name;
      for (size_t i = 0; i < head.Matrices().size(); ++i) {
        EXPECT_TRUE(at::equal(*head.Matrices()[i], *trained.heads.at(name).Matrices()[i])) << name;
        EXPECT_FALSE(at::equal(*head.Matrices()[i], *fresh.heads.at(name).Matrices()[i])) << name;
      }
    }
  }
}

// C5: a lesson changes neither the choices of its step nor any gradient.
TEST(Online, NothingOfALessonReachesTheModel) {
  for (const std::string scope : {"layer", "group", "nested", "stack"}) {
    for (const double share : {1.0, 0.5}) {
      SCOPED_TRACE(scope);
      const TokenSettings settings = Settings(scope, Layers(), 8);
      Class without(settings), with(settings);
      const std::vector<double> keep(Layers(), share);
      const std::vector<std::string> kept = without.Pass(keep, {});
      EXPECT_EQ(with.Pass(keep, with.policy.LessonsAt(0, true)), kept);
      EXPECT_EQ(kept[0].find('\0') != std::string::npos, share < 1);
      const std::vector<at::Tensor> wanted = without.model.Gradients();
      const std::vector<at::Tensor> grads = with.model.Gradients();
      for (size_t i = 0; i < grads.size(); ++i) {
        EXPECT_TRUE(at::equal(grads[i], wanted[i])) << with.model.trainables[i].name;
      }
      // It was one: the next choice is by other weights.
      with.policy.Update();
      EXPECT_EQ(with.policy.Make().card.steps, 1);
    }
  }
}

TEST(Online, LayersLearnInTurn) {
  ASSERT_EQ(Layers(), 3);
  const Class layer(Settings("layer", 3, 2));
  for (const bool dense : {true, false}) {
    EXPECT_THAT(layer.policy.LessonsAt(0, dense), ElementsAre(0, 1));
    EXPECT_THAT(layer.policy.LessonsAt(1, dense), ElementsAre(2, 0));
    EXPECT_THAT(layer.policy.LessonsAt(2, dense), ElementsAre(1, 2));
  }
  const Class all(Settings("group", 3, 9));
  EXPECT_THAT(all.policy.LessonsAt(5, false), ElementsAre(0, 1, 2));
  // Joint heads: any step of all rows, and sparse ones that measure recall.
  const Class nested(Settings("nested", 3, 1, {1, 0.8, 0.5}));
  EXPECT_THAT(nested.policy.LessonsAt(0, true), ElementsAre(1));
  EXPECT_THAT(nested.policy.LessonsAt(1, true), ElementsAre(2));
  EXPECT_THAT(nested.policy.LessonsAt(1, false), IsEmpty());
  EXPECT_THAT(nested.policy.LessonsAt(50, false), ElementsAre(2));
}

TEST(Online, GoesOnFromItsState) {
  const TokenSettings settings = Settings("layer", Layers(), 2);
  const std::vector<double> keep(Layers(), 0.5);
  const auto step = [&](Class& one, int64_t at) {
    one.Pass(keep, one.policy.LessonsAt(at, false));
    one.policy.Update();
  };
  Class whole(settings), resumed(settings);
  for (int64_t i = 0; i < 2; ++i) step(whole, i);
  const std::map<std::string, at::Tensor> state = whole.policy.State();
  ASSERT_TRUE(resumed.policy.Restore(state).ok());
  for (int64_t i = 2; i < 5; ++i) {
    step(whole, i);
    step(resumed, i);
  }
  EXPECT_EQ(resumed.Pass(keep, {}), whole.Pass(keep, {}));
  EXPECT_EQ(resumed.policy.Make().card.loss_curve, whole.policy.Make().card.loss_curve);
  const std::map<std::string, at::Tensor> end = whole.policy.State();
  for (const auto& [name, tensor] : resumed.policy.State()) {
    EXPECT_TRUE(at::equal(tensor, end.at(name))) << name;
  }
  // What is not such a state changes nothing.
  for (const auto& [name, tensor] : state) {
    std::map<std::string, at::Tensor> other = state;
    other[name] = at::zeros({2, 3, 4});
    EXPECT_TRUE(absl::IsInvalidArgument(whole.policy.Restore(other))) << name;
    other.erase(name);
    EXPECT_TRUE(absl::IsInvalidArgument(whole.policy.Restore(other))) << name;
  }
  EXPECT_TRUE(at::equal(whole.policy.State().at("layers.0.0"), end.at("layers.0.0")));
}

// Where a predictor lacks the head for all layers above, that of the layer begins in its place; and
// what has learnt before keeps its scale.
TEST(Online, GoesOnFromAPredictor) {
  TokenSettings settings = Settings("nested", Layers(), 1);
  const DecoderConfig config = testing::TinyConfig("gqa");
  Predictor start = FreshPredictor(settings, config, kSeed);
  start.heads.erase(AboveHead(0));
  start.heads.at(LayerHead(0)).scale = 0.25;
  start.heads["layers.2"] = DrawAttentionPredictor(start.card.shape, 9, "layers.2");
  start.card.steps = 400;
  TapedModel model("gqa", at::kFloat, testing::LoraSpec());
  OnlinePolicy policy(settings, model.decoder, start);
  const DeviceBatch device = ToDevice(RandomBatch(config, {64, 40}, 7), model.decoder, kBlock);
  policy.Learn(0, *device.space, at::randn({104, config.hidden}));
  policy.Update();
  policy.BeginMeasuring();
  policy.Measure(device.tokens, *device.space);
  const Predictor taught = policy.Make();
  EXPECT_EQ(taught.heads.at(AboveHead(0)).scale, 0.25);
  EXPECT_FALSE(at::equal(taught.heads.at(AboveHead(0)).q.w1, start.heads.at(LayerHead(0)).q.w1));
  EXPECT_EQ(taught.card.steps, 401);
  EXPECT_EQ(taught.card.loss_curve.front().first, 401);
  EXPECT_EQ(taught.card.quality.count(AboveHead(0)), 1u);
  // What the run does not ask stays as it was, and says nothing of itself.
  EXPECT_TRUE(at::equal(taught.heads.at("layers.2").q.w1, start.heads.at("layers.2").q.w1));
  EXPECT_EQ(taught.card.quality.count("layers.2"), 0u);
}

}  // namespace
}  // namespace lemo::train
