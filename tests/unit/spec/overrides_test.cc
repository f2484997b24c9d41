#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/spec/faults.h"
#include "worker/train/spec/spec.h"

namespace lemo::train {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

lemo::v1::RunSpec Base() {
  Violations violations;
  return ParseRunSpec(R"({"data": {"train": [{"path": "a", "format": "book"}]},
                          "tuner": {"lora": {"rank": 8, "targets": ["q_proj", "k_proj"]}},
                          "train": {"steps": 40}})",
                      "base", &violations);
}

// The spec after the assignments, which must all be good.
lemo::v1::RunSpec With(const std::vector<std::string>& assignments) {
  lemo::v1::RunSpec spec = Base();
  Violations violations;
  ApplyOverrides(assignments, &spec, &violations);
  EXPECT_THAT(Texts(violations), IsEmpty());
  return spec;
}

std::vector<std::string> FaultsOf(const std::string& assignment) {
  lemo::v1::RunSpec spec = Base();
  Violations violations;
  ApplyOverrides({assignment}, &spec, &violations);
  return Texts(violations);
}

TEST(ApplyOverrides, Scalars) {
  const auto spec =
      With({"train.steps=7", "train.learning_rate=1e-3", "data.packing=false", "output.dir=out/x=y",
            "model.path=123", "train.schedule=\"linear\"", "train.seed=1", "train.seed=2"});
  EXPECT_EQ(spec.train().steps(), 7);
  EXPECT_EQ(spec.train().learning_rate(), 1e-3);
  EXPECT_TRUE(spec.data().has_packing() && !spec.data().packing());
  EXPECT_EQ(spec.output().dir(), "out/x=y");
  EXPECT_EQ(spec.model().path(), "123");
  EXPECT_EQ(spec.train().schedule(), "linear");
  EXPECT_EQ(spec.train().seed(), 2u);
}

TEST(ApplyOverrides, NanIsANumberForValidationToRefuse) {
  EXPECT_TRUE(std::isnan(With({"train.learning_rate=nan"}).train().learning_rate()));
  EXPECT_TRUE(std::isinf(With({"train.learning_rate=-inf"}).train().learning_rate()));
}

TEST(ApplyOverrides, NullClears) {
  const auto spec = With({"train.steps=null", "tuner.lora.targets=null", "tuner.lora.rank=null"});
  EXPECT_FALSE(spec.train().has_steps());
  EXPECT_EQ(spec.tuner().lora().targets_size(), 0);
  EXPECT_FALSE(spec.tuner().lora().has_rank());
}

TEST(ApplyOverrides, Lists) {
  EXPECT_THAT(With({"tuner.lora.targets=all-linear"}).tuner().lora().targets(),
              ElementsAre("all-linear"));
  EXPECT_THAT(With({R"(tuner.lora.targets=["a", "b", "c"])"}).tuner().lora().targets(),
              ElementsAre("a", "b", "c"));
  EXPECT_THAT(With({"tuner.lora.targets[0]=x", "tuner.lora.targets[2]=y"}).tuner().lora().targets(),
              ElementsAre("x", "k_proj", "y"));
  const auto spec =
      With({"data.train[1].path=b", "data.train[0].path=c", "data.eval[0]={\"path\":\"e\"}"});
  ASSERT_EQ(spec.data().train_size(), 2);
  EXPECT_EQ(spec.data().train(0).path(), "c");
  EXPECT_EQ(spec.data().train(0).format(), "book");
  EXPECT_EQ(spec.data().train(1).path(), "b");
  EXPECT_EQ(spec.data().eval(0).path(), "e");
  EXPECT_FALSE(With({"data.train[0]={\"path\":\"z\"}"}).data().train(0).has_format());
}

TEST(ApplyOverrides, Maps) {
  const auto spec =
      With({"tuner.lora.rank_pattern.layers.0.q_proj=4", "tuner.lora.rank_pattern[\"a=b\"]=5",
            "tuner.lora.rank_pattern.x=1", "tuner.lora.rank_pattern.x=2",
            "tuner.lora.rank_pattern.y=3", "tuner.lora.rank_pattern.y=null"});
  const auto& pattern = spec.tuner().lora().rank_pattern();
  EXPECT_EQ(pattern.size(), 3u);
  EXPECT_EQ(pattern.at("layers.0.q_proj"), 4);
  EXPECT_EQ(pattern.at("a=b"), 5);
  EXPECT_EQ(pattern.at("x"), 2);
}

TEST(ApplyOverrides, ATunerIsOnlyReplacedAsAWhole) {
  EXPECT_TRUE(With({"tuner.full={}"}).tuner().has_full());
  lemo::v1::RunSpec spec;
  spec.mutable_tuner()->mutable_full();
  Violations violations;
  ApplyOverrides({"tuner.lora.rank=4"}, &spec, &violations);
  EXPECT_THAT(Texts(violations),
              ElementsAre("tuner.lora: --set: the spec chooses full; assign tuner.lora={...} as a "
                          "whole to replace it"));
  EXPECT_TRUE(spec.tuner().has_full());
}

TEST(ApplyOverrides, Faults) {
  EXPECT_THAT(FaultsOf("train.stesp=3"),
              ElementsAre("train.stesp: --set: unknown field; did you mean train.steps?"));
  EXPECT_THAT(FaultsOf("steps=3"),
              ElementsAre("steps: --set: unknown field; did you mean train.steps?"));
  EXPECT_THAT(FaultsOf("train.steps=many"), ElementsAre(HasSubstr("expected a whole number")));
  EXPECT_THAT(FaultsOf("train.steps"), ElementsAre(HasSubstr("expected field=value")));
  EXPECT_THAT(FaultsOf("=3"), ElementsAre(HasSubstr("expected field=value")));
  EXPECT_THAT(FaultsOf("train.steps.x=3"), ElementsAre(HasSubstr("has nothing called")));
  EXPECT_THAT(FaultsOf("train.steps[0]=3"), ElementsAre(HasSubstr("has nothing called")));
  EXPECT_THAT(FaultsOf("data.train.path=3"), ElementsAre(HasSubstr("reach into lists with [0]")));
  EXPECT_THAT(FaultsOf("data.train[9].path=3"),
              ElementsAre(HasSubstr("index 9 is out of range; the list has 1 elements, [1]")));
  EXPECT_THAT(FaultsOf("data.train[-1].path=3"), ElementsAre(HasSubstr("expected an index")));
  EXPECT_THAT(FaultsOf("data.train[0"), ElementsAre(HasSubstr("expected field=value")));
  EXPECT_THAT(FaultsOf("data.train[0=x"), ElementsAre(HasSubstr("expected an index")));
  EXPECT_THAT(FaultsOf("train={\"steps\": }"), ElementsAre(HasSubstr("not valid JSON")));
  EXPECT_THAT(FaultsOf("train={\"stesp\": 1}"),
              ElementsAre("train.stesp: --set: unknown field; did you mean train.steps?"));
  EXPECT_THAT(FaultsOf("model.path=\xff"), ElementsAre(HasSubstr("not UTF-8")));
  EXPECT_THAT(FaultsOf("tuner.lora.rank_pattern[x]=1"), ElementsAre(HasSubstr("expected a key")));
  EXPECT_THAT(FaultsOf("train..=1"), ElementsAre(HasSubstr("unknown field")));
}

}  // namespace
}  // namespace lemo::train
