#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/spec/faults.h"
#include "worker/train/spec/spec.h"

namespace lemo::train {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

lemo::v1::RunSpec Good() {
  Violations violations;
  return ParseRunSpec(R"({"model": {"path": "m"}, "data": {"train": [{"path": "a"}]},
                          "tuner": {"lora": {}}, "output": {"dir": "out"}})",
                      "good", &violations);
}

// Faults of the good spec after `assignments`, with defaults filled in.
std::vector<std::string> FaultsWith(const std::vector<std::string>& assignments) {
  lemo::v1::RunSpec spec = Good();
  Violations violations;
  ApplyOverrides(assignments, &spec, &violations);
  EXPECT_THAT(Texts(violations), IsEmpty());
  FillDefaults(&spec);
  ValidateRunSpec(spec, &violations);
  return Texts(violations);
}

TEST(FillDefaults, MakesTheSmallestSpecValid) {
  EXPECT_THAT(FaultsWith({}), IsEmpty());
  lemo::v1::RunSpec spec = Good();
  FillDefaults(&spec);
  EXPECT_EQ(spec.train().epochs(), 1);
  EXPECT_FALSE(spec.train().has_steps());
  EXPECT_EQ(spec.train().batch_sequences(), 4);
  EXPECT_EQ(spec.train().learning_rate(), 1e-4);
  EXPECT_EQ(spec.data().cache_dir(), "out/cache");
  EXPECT_FALSE(spec.data().has_max_length());
  EXPECT_THAT(spec.tuner().lora().targets(), ElementsAre("q_proj", "k_proj", "v_proj", "o_proj"));
}

TEST(FillDefaults, LeavesWhatIsGiven) {
  lemo::v1::RunSpec spec = Good();
  Violations violations;
  ApplyOverrides({"train.steps=3", "train.batch_tokens=100", "tuner.full={}", "train.beta1=0"},
                 &spec, &violations);
  FillDefaults(&spec);
  EXPECT_FALSE(spec.train().has_epochs());
  EXPECT_FALSE(spec.train().has_batch_sequences());
  EXPECT_EQ(spec.train().learning_rate(), 1e-5);
  EXPECT_EQ(spec.train().beta1(), 0);
  EXPECT_TRUE(spec.tuner().has_full());
  const std::string once = RunSpecToJson(spec);
  FillDefaults(&spec);
  EXPECT_EQ(RunSpecToJson(spec), once);
}

TEST(FillDefaults, APredictorTrainsAsItsSectionSays) {
  lemo::v1::RunSpec spec = Good();
  Violations violations;
  ApplyOverrides({"tuner=null", "predictor={}"}, &spec, &violations);
  FillDefaults(&spec);
  EXPECT_EQ(spec.train().steps(), 400);
  EXPECT_FALSE(spec.train().has_epochs());
  EXPECT_EQ(spec.train().batch_sequences(), 1);
  EXPECT_EQ(spec.train().learning_rate(), 1e-3);
  EXPECT_EQ(spec.train().min_learning_rate_ratio(), 0.01);
  EXPECT_EQ(spec.train().beta2(), 0.95);
  EXPECT_EQ(spec.predictor().kind(), "token_pool");
  EXPECT_EQ(spec.predictor().block(), 64);
  EXPECT_EQ(spec.predictor().combine(), "symmetric");
}

TEST(ValidateRunSpec, APredictorStandsInTheTunersPlace) {
  EXPECT_THAT(FaultsWith({"tuner=null", "predictor={}"}), IsEmpty());
  EXPECT_THAT(FaultsWith({"predictor={}"}),
              ElementsAre("predictor: excludes tuner: a run trains one or the other"));
  EXPECT_THAT(
      FaultsWith({"tuner=null", "predictor.kind=\"pool\"", "predictor.r1=0",
                  "predictor.nested_from=[-1]", "tokens.policy=\"random\""}),
      ElementsAre(HasSubstr("tokens: a predictor is trained"), HasSubstr("predictor.kind: "),
                  HasSubstr("predictor.r1: "), HasSubstr("predictor.nested_from[0]: ")));
}

TEST(FillDefaults, PositionsAreSkippedOnlyWhereAsked) {
  lemo::v1::RunSpec spec = Good();
  FillDefaults(&spec);
  EXPECT_FALSE(spec.data().has_skip_positions());
  spec.mutable_data()->mutable_skip_positions()->set_target(9);
  FillDefaults(&spec);
  EXPECT_EQ(spec.data().skip_positions().chunks(), 2);
}

TEST(FillDefaults, NeverChoosesATuner) {
  lemo::v1::RunSpec spec = Good();
  spec.clear_tuner();
  FillDefaults(&spec);
  Violations violations;
  ValidateRunSpec(spec, &violations);
  EXPECT_THAT(Texts(violations), ElementsAre(HasSubstr("tuner: required: one of lora, full")));
}

TEST(ValidateRunSpec, AnEmptySpecNamesEverythingRequired) {
  lemo::v1::RunSpec spec;
  FillDefaults(&spec);
  Violations violations;
  ValidateRunSpec(spec, &violations);
  EXPECT_THAT(Texts(violations),
              ElementsAre(HasSubstr("model.path: required"), HasSubstr("data.train: required"),
                          HasSubstr("tuner: required"), HasSubstr("output.dir: required")));
}

TEST(ValidateRunSpec, EvalOnlyNeedsOtherData) {
  lemo::v1::RunSpec spec = Good();
  spec.mutable_data()->clear_train();
  Violations violations;
  ValidateRunSpec(spec, &violations, {.eval_only = true});
  EXPECT_THAT(Texts(violations), ElementsAre(HasSubstr("data.eval: required")));
}

TEST(ValidateRunSpec, Exclusions) {
  EXPECT_THAT(FaultsWith({"train.steps=1", "train.epochs=1"}),
              ElementsAre(HasSubstr("train.epochs: excludes train.steps")));
  EXPECT_THAT(FaultsWith({"train.batch_tokens=1", "train.batch_sequences=1"}),
              ElementsAre(HasSubstr("train.batch_tokens: excludes train.batch_sequences")));
}

TEST(ValidateRunSpec, WhatRanksThatShareAModelDoNotDo) {
  EXPECT_THAT(FaultsWith({"parallel.tensor=2"}), IsEmpty());
  EXPECT_THAT(FaultsWith({"parallel.tensor=2", "tuner=null", "predictor={}"}),
              ElementsAre(HasSubstr("parallel.tensor: must be 1")));
  for (const std::string policy : {"oracle", "table"}) {
    EXPECT_THAT(FaultsWith({"parallel.tensor=1", "tokens.policy=" + policy}), IsEmpty());
    EXPECT_THAT(FaultsWith({"parallel.tensor=2", "tokens.policy=" + policy}),
                ElementsAre(HasSubstr("tokens.policy: " + policy)));
  }
  EXPECT_THAT(FaultsWith({"parallel.tensor=2", "parallel.sequence=true"}), IsEmpty());
  EXPECT_THAT(FaultsWith({"parallel.sequence=true"}),
              ElementsAre(HasSubstr("parallel.sequence: needs parallel.tensor above 1")));
}

TEST(ValidateRunSpec, SeveralFaultsAtOnce) {
  EXPECT_THAT(FaultsWith({"data.max_length=0", "train.learning_rate=nan", "memory.policy=attn",
                          "tuner.lora.rank=0"}),
              ElementsAre("data.max_length: must be at least 2, got 0",
                          "tuner.lora.rank: must be at least 1, got 0",
                          "train.learning_rate: must be a finite number above 0, got nan",
                          HasSubstr("memory.policy: \"attn\" is not one of all, mlp, attn_out")));
}

TEST(ValidateRunSpec, ChoicesAreListedWithTheNearest) {
  EXPECT_THAT(
      FaultsWith({"train.schedule=cosin"}),
      ElementsAre("train.schedule: \"cosin\" is not one of constant, linear, cosine; did you "
                  "mean cosine?"));
}

TEST(ValidateRunSpec, LayerPolicies) {
  EXPECT_THAT(FaultsWith({R"(memory.layers=[{"first":0,"last":3,"policy":"input+offload"},
                                            {"first":4,"last":4,"policy":"all"}])"}),
              IsEmpty());
  EXPECT_THAT(
      FaultsWith({R"(memory.layers=[{"first":-1,"last":3,"policy":"input"},
                                            {"first":3,"last":5,"policy":"all"},
                                            {"first":9,"last":8,"policy":"none"}])"}),
      ElementsAre("memory.layers[0].first: must be at least 0, got -1",
                  "memory.layers[1]: layers 3 to 5 overlap memory.layers[0], layers -1 to 3",
                  "memory.layers[2].last: must be at least first = 9, got 8",
                  HasSubstr("memory.layers[2].policy: \"none\" is not one of")));
}

struct Refusal {
  std::string assignment;
  std::string field;
};

class Refuses : public ::testing::TestWithParam<Refusal> {};

TEST_P(Refuses, ThatField) {
  const std::vector<std::string> faults = FaultsWith({GetParam().assignment});
  ASSERT_EQ(faults.size(), 1u) << GetParam().assignment << "\n" << ::testing::PrintToString(faults);
  EXPECT_EQ(faults[0].substr(0, GetParam().field.size() + 1), GetParam().field + ":") << faults[0];
}

INSTANTIATE_TEST_SUITE_P(
    Values, Refuses,
    ::testing::Values(
        Refusal{"device=gpu", "device"}, Refusal{"device=cuda:", "device"},
        Refusal{"device=cuda:x", "device"},
        Refusal{"model.compute_type=fp16", "model.compute_type"},
        Refusal{"data.max_length=1", "data.max_length"},
        Refusal{"data.max_length=-5", "data.max_length"},
        Refusal{"data.overlong=cut", "data.overlong"}, Refusal{"data.loss_on=user", "data.loss_on"},
        Refusal{"data.train[0].format=csv", "data.train[0].format"},
        Refusal{"data.train[1]={}", "data.train[1].path"},
        Refusal{"tuner.lora.dropout=1", "tuner.lora.dropout"},
        Refusal{"tuner.lora.dropout=-0.1", "tuner.lora.dropout"},
        Refusal{"tuner.lora.alpha=0", "tuner.lora.alpha"},
        Refusal{"tuner.lora.alpha=inf", "tuner.lora.alpha"},
        Refusal{"tuner.lora.targets=[\"a\",\"a\"]", "tuner.lora.targets[1]"},
        Refusal{"tuner.lora.targets=[\"\"]", "tuner.lora.targets[0]"},
        Refusal{"tuner.lora.targets=[\"a\",\"all-linear\"]", "tuner.lora.targets[1]"},
        Refusal{"tuner.lora.rank_pattern.x=0", "tuner.lora.rank_pattern[\"x\"]"},
        Refusal{"tuner.lora.alpha_pattern.x=nan", "tuner.lora.alpha_pattern[\"x\"]"},
        Refusal{"train.steps=0", "train.steps"}, Refusal{"train.epochs=0", "train.epochs"},
        Refusal{"train.epochs=inf", "train.epochs"},
        Refusal{"train.batch_sequences=0", "train.batch_sequences"},
        Refusal{"train.batch_tokens=0", "train.batch_tokens"},
        Refusal{"train.micro_batch_tokens=0", "train.micro_batch_tokens"},
        Refusal{"train.learning_rate=0", "train.learning_rate"},
        Refusal{"train.learning_rate=-1", "train.learning_rate"},
        Refusal{"train.learning_rate=inf", "train.learning_rate"},
        Refusal{"train.warmup_steps=-1", "train.warmup_steps"},
        Refusal{"train.min_learning_rate_ratio=1.1", "train.min_learning_rate_ratio"},
        Refusal{"train.weight_decay=-1", "train.weight_decay"},
        Refusal{"train.beta1=1", "train.beta1"}, Refusal{"train.beta2=nan", "train.beta2"},
        Refusal{"train.epsilon=0", "train.epsilon"},
        Refusal{"train.max_grad_norm=-1", "train.max_grad_norm"},
        Refusal{"memory.mlp_tile_rows=0", "memory.mlp_tile_rows"},
        Refusal{"memory.loss_segment_rows=0", "memory.loss_segment_rows"},
        Refusal{"eval.every_steps=-1", "eval.every_steps"},
        Refusal{"eval.every_steps=5", "eval.every_steps"},
        Refusal{"eval.max_sequences=-1", "eval.max_sequences"},
        Refusal{"checkpoint.every_steps=-1", "checkpoint.every_steps"},
        Refusal{"checkpoint.keep_last=0", "checkpoint.keep_last"},
        Refusal{"checkpoint.keep_best=true", "checkpoint.keep_best"}));

TEST(ValidateRunSpec, SkippedPositionsReachBeyondTheDocuments) {
  EXPECT_THAT(FaultsWith({"data.max_length=64", "data.skip_positions.target=64"}), IsEmpty());
  EXPECT_THAT(FaultsWith({"data.skip_positions={}"}),
              ElementsAre(HasSubstr("data.skip_positions.target: required"),
                          HasSubstr("data.max_length: required")));
  for (const std::string chunks : {"0", "1025"}) {
    EXPECT_THAT(FaultsWith({"data.max_length=64", "data.skip_positions.target=63",
                            "data.skip_positions.chunks=" + chunks}),
                ElementsAre("data.skip_positions.target: must be at least data.max_length = 64, "
                            "got 63",
                            "data.skip_positions.chunks: must be from 1 to 1024, got " + chunks));
  }
}

TEST(ValidateRunSpec, CombinationsAcrossSections) {
  EXPECT_THAT(FaultsWith({"device=cpu", "model.compute_type=float16"}),
              ElementsAre(HasSubstr("model.compute_type: float16 needs a CUDA device")));
  EXPECT_THAT(FaultsWith({"device=cuda:1", "model.compute_type=float64"}),
              ElementsAre(HasSubstr("model.compute_type: float64 runs on the CPU only")));
  EXPECT_THAT(FaultsWith({"data.max_length=100", "train.micro_batch_tokens=99"}),
              ElementsAre(HasSubstr("must hold a sequence of data.max_length = 100")));
  EXPECT_THAT(FaultsWith({"tuner.full={}", "output.merge=true"}),
              ElementsAre(HasSubstr("output.merge: is for lora")));
  EXPECT_THAT(FaultsWith({"device=cuda:1"}), IsEmpty());
}

TEST(IsStoragePolicy, KnowsThem) {
  EXPECT_TRUE(IsStoragePolicy("attn_out"));
  EXPECT_TRUE(IsStoragePolicy("all+offload"));
  EXPECT_FALSE(IsStoragePolicy("attn_out+"));
  EXPECT_FALSE(IsStoragePolicy(""));
}

TEST(ValidateRunSpec, ABudgetIsForWhatCanBeForecast) {
  EXPECT_THAT(FaultsWith({"memory.budget_bytes=1"}), IsEmpty());
  EXPECT_THAT(FaultsWith({"memory.budget_bytes=0"}),
              ElementsAre("memory.budget_bytes: must be at least 1, got 0"));
  for (const std::string choice : {"tokens.kv_all=true", "tokens.mode=ratio"}) {
    EXPECT_THAT(
        FaultsWith({"memory.budget_bytes=9", "tokens.policy=norm", "tokens.scope=layer", choice}),
        IsEmpty());
  }
  const std::vector<std::string> threshold = {"memory.budget_bytes=9", "tokens.policy=norm",
                                              "tokens.scope=layer", "tokens.mode=threshold",
                                              "tokens.threshold=[1]"};
  EXPECT_THAT(FaultsWith(threshold), IsEmpty());
  std::vector<std::string> elastic = threshold;
  elastic.insert(elastic.end(), {"memory.elastic=true", "memory.min_keep=0.3"});
  EXPECT_THAT(FaultsWith(elastic), ElementsAre(HasSubstr("memory.elastic: the thresholds say")));
  for (const std::string policy : {"table", "predictor", "oracle"}) {
    EXPECT_THAT(FaultsWith({"memory.budget_bytes=9", "tokens.policy=" + policy}), IsEmpty());
  }
  EXPECT_THAT(FaultsWith({"memory.budget_bytes=9", "tokens.policy=predictor", "tokens.online={}"}),
              IsEmpty());
  EXPECT_THAT(FaultsWith({"memory.budget_bytes=9", "model.compute_type=float64"}),
              ElementsAre(HasSubstr("memory.budget_bytes: the bytes of float64")));
}

TEST(ValidateRunSpec, OnePredictorLearnsInOneRank) {
  for (const std::string way : {"data", "tensor"}) {
    EXPECT_THAT(
        FaultsWith({"tokens.policy=predictor", "tokens.online={}", "parallel." + way + "=2"}),
        ElementsAre(HasSubstr("tokens.online: is for one rank")));
  }
}

TEST(ValidateRunSpec, WhatMayBeLeftOutIsTheJobsToSay) {
  const std::vector<std::string> random = {"memory.budget_bytes=9", "tokens.policy=random"};
  const auto with = [&random](std::vector<std::string> more) {
    more.insert(more.begin(), random.begin(), random.end());
    return FaultsWith(more);
  };
  EXPECT_THAT(with({"memory.elastic=true", "memory.min_keep=0.25"}), IsEmpty());
  EXPECT_THAT(with({"memory.elastic=true", "memory.min_keep=0.25", "tokens.keep=[1]"}), IsEmpty());
  EXPECT_THAT(with({"memory.elastic=true"}), ElementsAre(HasSubstr("memory.min_keep: required: ")));
  EXPECT_THAT(with({"memory.min_keep=0.25"}),
              ElementsAre("memory.min_keep: is for memory.elastic"));
  EXPECT_THAT(with({"memory.elastic=true", "memory.min_keep=0.5"}),
              ElementsAre(HasSubstr("memory.min_keep: must be below tokens.keep, 0.5")));
  EXPECT_THAT(with({"memory.elastic=true", "memory.min_keep=nan"}),
              ElementsAre(HasSubstr("memory.min_keep: must be a finite number above 0")));
  EXPECT_THAT(FaultsWith({"memory.elastic=true", "memory.min_keep=0.5"}),
              ElementsAre("memory.elastic: is about memory.budget_bytes; give that, too",
                          HasSubstr("memory.elastic: needs a tokens.policy")));
}

TEST(ValidateRunSpec, AShadowNeedsWhatItCompares) {
  const std::vector<std::string> good = {"tokens.policy=random", "data.eval=[{\"path\": \"e\"}]",
                                         "eval.shadow_every_steps=5"};
  const auto with = [&good](std::vector<std::string> more) {
    more.insert(more.begin(), good.begin(), good.end());
    return FaultsWith(more);
  };
  EXPECT_THAT(with({}), IsEmpty());
  EXPECT_THAT(with({"eval.max_quality_gap=0", "eval.shadow_sequences=2"}), IsEmpty());
  EXPECT_THAT(with({"tokens.policy=dense"}),
              ElementsAre("eval.shadow_every_steps: needs a tokens.policy that drops rows"));
  EXPECT_THAT(with({"data.eval=null"}),
              ElementsAre("eval.shadow_every_steps: needs files in data.eval"));
  EXPECT_THAT(with({"eval.max_quality_gap=-1", "eval.shadow_sequences=0"}),
              ElementsAre("eval.shadow_sequences: must be at least 1, got 0",
                          HasSubstr("eval.max_quality_gap: must be a finite number")));
  EXPECT_THAT(FaultsWith({"eval.max_quality_gap=0.1"}),
              ElementsAre(HasSubstr("eval.max_quality_gap: is measured every")));
}

}  // namespace
}  // namespace lemo::train
