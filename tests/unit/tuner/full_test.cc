#include "worker/train/tuner/full.h"

#include <gmock/gmock.h>

#include "tests/unit/tuner/tuned_model.h"

namespace lemo::train {
namespace {

using testing::FullSpec;

class FullTunerOn : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Shapes, FullTunerOn, ::testing::Values("mha", "gqa", "qwen2", "qwen3"));

TEST_P(FullTunerOn, TrainsEveryParameterOnce) {
  TunedModel model(GetParam(), at::kFloat, FullSpec());
  ASSERT_TRUE(model.Attach(1).ok());
  EXPECT_EQ(model.tuner->kind(), "full");
  std::vector<std::string> names, expected;
  int64_t count = 0;
  for (const Trainable& trainable : model.trainables) {
    names.push_back(trainable.name);
    EXPECT_EQ(trainable.grad.sizes(), trainable.master.sizes());
    EXPECT_TRUE(trainable.value.requires_grad());
    EXPECT_TRUE(at::equal(trainable.master, model.weights.at(trainable.name))) << trainable.name;
  }
  for (const auto& [name, tensor] : model.weights.tensors()) {
    expected.push_back(name);
    count += tensor.numel();
  }
  EXPECT_THAT(names, ::testing::UnorderedElementsAreArray(expected));
  EXPECT_EQ(CountParameters(model.trainables), count);
}

TEST_P(FullTunerOn, NormsAndBiasesDoNotDecay) {
  TunedModel model(GetParam(), at::kFloat, FullSpec());
  ASSERT_TRUE(model.Attach(1).ok());
  for (const Trainable& trainable : model.trainables) {
    const bool norm_or_bias = trainable.name.find("norm.weight") != std::string::npos ||
                              trainable.name.ends_with(".bias");
    EXPECT_EQ(trainable.decay, !norm_or_bias) << trainable.name;
  }
  EXPECT_EQ(model.Find("model.layers.0.self_attn.q_proj.bias") != nullptr, GetParam() == "qwen2");
}

TEST_P(FullTunerOn, EveryParameterMovesAndTheLoadedWeightsStay) {
  TunedModel model(GetParam(), at::kFloat, FullSpec());
  const auto base = model.CopyWeights();
  ASSERT_TRUE(model.Attach(1).ok());
  const double first = model.Train(1, {});
  EXPECT_LT(model.Train(5, {.weight_decay = 0.1}), first);
  for (const auto& [name, tensor] : model.weights.tensors()) {
    EXPECT_TRUE(at::equal(tensor, base.at(name))) << name;
    EXPECT_FALSE(at::equal(model.Find(name)->master, base.at(name))) << name;
  }
}

TEST(FullTuner, ATiedHeadIsOneTensor) {
  TunedModel tied("mha", at::kFloat, FullSpec());
  ASSERT_TRUE(tied.Attach(1).ok());
  EXPECT_TRUE(tied.decoder.head.is_same(tied.decoder.embedding));
  EXPECT_TRUE(tied.Find("model.embed_tokens.weight")->value.is_same(tied.decoder.head));
  EXPECT_EQ(tied.Find("lm_head.weight"), nullptr);

  TunedModel untied("qwen3", at::kFloat, FullSpec());
  ASSERT_TRUE(untied.Attach(1).ok());
  EXPECT_TRUE(untied.Find("lm_head.weight")->value.is_same(untied.decoder.head));
  EXPECT_FALSE(untied.decoder.head.is_same(untied.decoder.embedding));
}

TEST(FullTuner, MastersAreWiderThanValues) {
  for (const auto type : {at::kBFloat16, at::kFloat, at::kDouble}) {
    TunedModel model("mha", type, FullSpec());
    ASSERT_TRUE(model.Attach(1).ok());
    for (const Trainable& trainable : model.trainables) {
      EXPECT_EQ(trainable.value.scalar_type(), type);
      EXPECT_EQ(trainable.master.scalar_type(), type == at::kDouble ? at::kDouble : at::kFloat);
      EXPECT_EQ(trainable.grad.scalar_type(), trainable.master.scalar_type());
      EXPECT_EQ(trainable.value.is_same(trainable.master), type != at::kBFloat16);
    }
  }
}

TEST(MakeTuner, NeverChoosesForTheUser) {
  const auto tuner = MakeTuner(lemo::v1::TunerSpec());
  ASSERT_FALSE(tuner.ok());
  EXPECT_EQ(tuner.status().message(), "tuner: choose one of lora, full");
}

}  // namespace
}  // namespace lemo::train
