// tokens.*: its defaults, its faults by field, and what becomes of it for a model.
#include "worker/train/tokens/settings.h"

#include <optional>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/spec/faults.h"
#include "worker/train/spec/spec.h"

namespace lemo::train {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::StartsWith;

using Assignments = std::vector<std::string>;

constexpr int64_t kLayers = 6;

lemo::v1::TokensSpec Spec(const Assignments& assignments) {
  lemo::v1::RunSpec spec;
  Violations violations;
  ApplyOverrides(assignments, &spec, &violations);
  EXPECT_THAT(Texts(violations), IsEmpty());
  FillTokenDefaults(spec.mutable_tokens());
  return spec.tokens();
}

// Without the model and with it.
std::vector<std::string> Faults(const Assignments& assignments) {
  const lemo::v1::TokensSpec spec = Spec(assignments);
  Violations violations;
  ValidateTokens(spec, &violations);
  if (violations.empty()) MakeTokenSettings(spec, kLayers, &violations);
  return Texts(violations);
}

TokenSettings Settings(const Assignments& assignments, int64_t layers = kLayers) {
  Violations violations;
  const TokenSettings settings = MakeTokenSettings(Spec(assignments), layers, &violations);
  EXPECT_THAT(Texts(violations), IsEmpty());
  return settings;
}

TEST(TokenSettings, NothingSaidIsAllRows) {
  for (const Assignments& said : {Assignments{}, Assignments{"tokens.policy=dense"}}) {
    const TokenSettings settings = Settings(said);
    EXPECT_TRUE(settings.dense());
    EXPECT_THAT(settings.keep, ElementsAre(1, 1, 1, 1, 1, 1));
    EXPECT_EQ(settings.KeepAt(3, 10), settings.keep);
  }
}

TEST(TokenSettings, DefaultsFollowTheScope) {
  EXPECT_EQ(Settings({"tokens.policy=random"}).scope, Scope::kStack);
  for (const auto& [scope, through] :
       {std::pair("layer", false), {"group", false}, {"nested", true}, {"stack", true}}) {
    const TokenSettings settings =
        Settings({"tokens.policy=norm", std::string("tokens.scope=") + scope});
    EXPECT_EQ(settings.loss_through, through) << scope;
    EXPECT_EQ(settings.mlp, MlpRows::kShared);
    EXPECT_EQ(settings.block, 64);
    EXPECT_EQ(settings.select.sink_blocks, 1);
    EXPECT_EQ(settings.select.local_blocks, 1);
    EXPECT_TRUE(settings.keep_labels);
  }
}

TEST(TokenSettings, SparseLayers) {
  const auto keep = [](const Assignments& more) {
    Assignments all = {"tokens.policy=random", "tokens.keep=0.4"};
    all.insert(all.end(), more.begin(), more.end());
    return Settings(all).keep;
  };
  // From layers / 2 - 1 to the last but one; what left does not come back for the last.
  EXPECT_THAT(keep({"tokens.scope=layer"}), ElementsAre(1, 1, .4, .4, .4, 1));
  EXPECT_THAT(keep({"tokens.scope=nested"}), ElementsAre(1, 1, .4, .4, .4, .4));
  EXPECT_THAT(keep({"tokens.scope=stack"}), ElementsAre(.4, .4, .4, .4, .4, .4));
  EXPECT_THAT(keep({"tokens.scope=layer", "tokens.layers=all"}),
              ElementsAre(.4, .4, .4, .4, .4, .4));
  EXPECT_THAT(keep({"tokens.scope=layer", "tokens.layers=0,2-3"}),
              ElementsAre(.4, 1, .4, .4, 1, 1));
  EXPECT_THAT(Settings({"tokens.policy=random", "tokens.scope=nested",
                        "tokens.keep=[1, 0.9, 0.9, 0.5, 0.5, 0.2]"})
                  .keep,
              ElementsAre(1, .9, .9, .5, .5, .2));
  // A model of one layer or two has something to drop, too.
  EXPECT_THAT(Settings({"tokens.policy=random", "tokens.scope=layer", "tokens.layers=all"}, 1).keep,
              ElementsAre(.5));
  EXPECT_THAT(Settings({"tokens.policy=random", "tokens.scope=layer"}, 2).keep, ElementsAre(.5, 1));
}

TEST(TokenSettings, Groups) {
  const TokenSettings settings =
      Settings({"tokens.policy=random", "tokens.scope=group", "tokens.group_layers=2",
                "tokens.keep=[1, 0.5, 0.5, 0.5, 1, 0.5]"});
  std::vector<bool> continues;
  for (int64_t i = 0; i < kLayers; ++i) continues.push_back(settings.ContinuesGroup(i));
  EXPECT_THAT(continues, ElementsAre(false, false, true, false, false, false));
}

TEST(TokenSettings, OneChoiceAfterAnotherIsMeasured) {
  const auto choices = [](const Assignments& more) {
    Assignments all = {"tokens.policy=predictor"};
    all.insert(all.end(), more.begin(), more.end());
    return Settings(all).Choices();
  };
  EXPECT_THAT(choices({"tokens.scope=layer"}), ElementsAre(2, 3, 4));
  EXPECT_THAT(choices({"tokens.scope=group", "tokens.layers=all"}), ElementsAre(0, 2, 4));
  EXPECT_THAT(choices({"tokens.scope=nested", "tokens.keep=[1, 0.9, 0.9, 0.5, 0.5, 0.2]"}),
              ElementsAre(1, 3, 5));
  EXPECT_THAT(choices({"tokens.scope=stack"}), ElementsAre(0));
  EXPECT_THAT(choices({"tokens.keep=1"}), IsEmpty());
  const TokenSettings layer = Settings({"tokens.policy=predictor", "tokens.scope=layer"});
  for (const auto& [step, measured] :
       {std::pair(0, std::optional<int64_t>(2)), {1, std::nullopt}, {10, 3}, {20, 4}, {30, 2}}) {
    EXPECT_EQ(layer.MeasuredAt(step), measured) << step;
  }
  // There a measurement is a forward pass of all rows, which only a predictor that learns is worth.
  EXPECT_EQ(Settings({"tokens.policy=predictor"}).MeasuredAt(0), std::nullopt);
  const TokenSettings stack = Settings({"tokens.policy=predictor", "tokens.online={}"});
  EXPECT_EQ(stack.MeasuredAt(10), std::nullopt);
  EXPECT_EQ(stack.MeasuredAt(50), 0);
  const TokenSettings never = Settings({"tokens.policy=predictor", "tokens.recall_every_steps=0"});
  EXPECT_EQ(never.MeasuredAt(0), std::nullopt);
  EXPECT_EQ(Settings({"tokens.policy=norm"}).MeasuredAt(0), std::nullopt);
}

TEST(TokenSettings, APredictorThatBeginsAnewBeginsWithAllRows) {
  const auto filled = [](const Assignments& more, int64_t steps, bool fresh) {
    Assignments all = {"tokens.policy=predictor", "tokens.online={}"};
    all.insert(all.end(), more.begin(), more.end());
    lemo::v1::TokensSpec spec = Spec(all);
    FillWarmup(steps, fresh, &spec);
    return std::pair(spec.warmup_steps(), spec.anneal_steps());
  };
  EXPECT_EQ(filled({}, 2400, true), std::pair(50, 200));
  EXPECT_EQ(filled({}, 40, true), std::pair(10, 20));
  EXPECT_EQ(filled({}, 2400, false), std::pair(0, 0));
  EXPECT_EQ(filled({"tokens.warmup_steps=7"}, 40, true), std::pair(7, 20));
  const lemo::v1::TokensSpec online = Spec({"tokens.policy=predictor", "tokens.online={}"});
  EXPECT_EQ(online.online().layers_per_step(), 1);
  EXPECT_EQ(online.online().learning_rate(), 1e-3);
  lemo::v1::TokensSpec other = Spec({"tokens.policy=predictor"});
  FillWarmup(2400, true, &other);
  EXPECT_EQ(other.warmup_steps(), 0);
}

TEST(TokenSettings, TheShareOverARun) {
  const TokenSettings settings =
      Settings({"tokens.policy=random", "tokens.scope=layer", "tokens.keep=[1, 1, 0.5, 0.2, 1, 1]",
                "tokens.warmup_steps=2", "tokens.anneal_steps=4", "tokens.cooldown_steps=3"});
  const auto at = [&settings](int64_t step) { return settings.KeepAt(step, 12); };
  const std::vector<double> all(kLayers, 1.0);
  for (const int64_t step : {0, 1, 2, 9, 10, 11}) EXPECT_EQ(at(step), all) << step;
  EXPECT_THAT(at(3), ElementsAre(1, 1, 0.875, 0.8, 1, 1));
  EXPECT_THAT(at(5), ElementsAre(1, 1, 0.625, ::testing::DoubleNear(0.4, 1e-15), 1, 1));
  for (const int64_t step : {6, 7, 8}) EXPECT_EQ(at(step), settings.keep) << step;
}

TEST(TokenSettings, SharesCanBeCappedAndRaised) {
  const std::vector<double> all(kLayers, 1.0);
  const TokenSettings settings =
      Settings({"tokens.policy=random", "tokens.scope=layer", "tokens.keep=0.4"});
  ASSERT_THAT(settings.keep, ElementsAre(1, 1, 0.4, 0.4, 0.4, 1));
  EXPECT_EQ(settings.Capped(settings.keep, 1), settings.keep);
  EXPECT_THAT(settings.Capped(settings.keep, 0.3), ElementsAre(1, 1, 0.3, 0.3, 0.3, 1));
  // A step of all rows, too; but never a layer that the spec wants whole.
  EXPECT_THAT(settings.Capped(all, 0.3), ElementsAre(1, 1, 0.3, 0.3, 0.3, 1));
  EXPECT_THAT(settings.Raised(settings.keep, 0.7), ElementsAre(1, 1, 0.7, 0.7, 0.7, 1));
  EXPECT_EQ(settings.Raised(settings.keep, 0), settings.keep);
  // Where everything is kept, every layer may come to drop some.
  const TokenSettings whole = Settings({"tokens.policy=random", "tokens.keep=1"});
  EXPECT_EQ(whole.Capped(all, 0.5), std::vector<double>(kLayers, 0.5));
  // What must not rise with depth does not.
  const TokenSettings nested = Settings(
      {"tokens.policy=random", "tokens.scope=nested", "tokens.keep=[1,1,0.8,0.6,0.4,0.2]"});
  EXPECT_THAT(nested.Capped(nested.keep, 0.5), ElementsAre(1, 1, 0.5, 0.5, 0.4, 0.2));
  EXPECT_THAT(nested.Raised(nested.keep, 0.5), ElementsAre(1, 1, 0.8, 0.6, 0.5, 0.5));
}

struct Fault {
  Assignments said;
  std::string field;
  std::string reason;  // a part of it
};

class TokenFaults : public ::testing::TestWithParam<Fault> {};

TEST_P(TokenFaults, NameTheFieldAndTheReason) {
  Assignments all = GetParam().said;
  if (all.front().find("tokens.policy=") != 0) all.insert(all.begin(), "tokens.policy=random");
  EXPECT_THAT(Faults(all), AllOf(SizeIs(1), Contains(AllOf(StartsWith(GetParam().field + ": "),
                                                           HasSubstr(GetParam().reason)))));
}

INSTANTIATE_TEST_SUITE_P(
    Fields, TokenFaults,
    ::testing::Values(
        Fault{{"tokens.policy=rnadom"}, "tokens.policy", "did you mean random?"},
        Fault{{"tokens.policy="}, "tokens.policy", "is not one of"},
        Fault{{"tokens.scope=layers"}, "tokens.scope", "did you mean layer?"},
        Fault{{"tokens.scope=layer", "tokens.mlp=on"}, "tokens.mlp", "off, shared, own"},
        Fault{{"tokens.loss_rows=some"}, "tokens.loss_rows", "all, through"},
        Fault{{"tokens.mode=budget"}, "tokens.mode", "ratio, threshold"},
        Fault{{"tokens.keep=0"}, "tokens.keep[0]", "above 0 and at most 1, got 0"},
        Fault{{"tokens.keep=1.5"}, "tokens.keep[0]", "got 1.5"},
        Fault{{"tokens.keep=-1"}, "tokens.keep[0]", "got -1"},
        Fault{{"tokens.scope=layer", "tokens.keep=[0.5, 2, 0.5, 0.5, 0.5, 0.5]"},
              "tokens.keep[1]",
              "got 2"},
        Fault{{"tokens.scope=layer", "tokens.keep=[0.5, 0.5]"},
              "tokens.keep",
              "each of the model's 6 layers; it has 2"},
        Fault{{"tokens.keep=[0.5, 0.5, 0.5, 0.5, 0.5, 0.5]"}, "tokens.keep", "one share"},
        Fault{{"tokens.scope=nested", "tokens.keep=[1, 0.5, 0.7, 0.5, 0.5, 0.5]"},
              "tokens.keep",
              "do not come back"},
        Fault{{"tokens.scope=nested", "tokens.layers=2-3"}, "tokens.layers", "go on to the last"},
        Fault{
            {"tokens.scope=layer", "tokens.layers=2-6"}, "tokens.layers", "beyond the last layer"},
        Fault{{"tokens.scope=layer", "tokens.layers=some"}, "tokens.layers", "neither auto, all"},
        Fault{{"tokens.scope=layer", "tokens.layers=3-2"}, "tokens.layers", "neither auto, all"},
        Fault{{"tokens.scope=layer", "tokens.layers=1-2-3"}, "tokens.layers", "neither auto, all"},
        Fault{{"tokens.scope=layer", "tokens.layers=1,"}, "tokens.layers", "neither auto, all"},
        Fault{
            {"tokens.scope=layer", "tokens.layers=1-2", "tokens.keep=[1, 0.5, 0.5, 0.5, 0.5, 0.5]"},
            "tokens.layers",
            "excludes a list of shares"},
        Fault{{"tokens.scope=nested", "tokens.mlp=own"}, "tokens.mlp", "only shared"},
        Fault{{"tokens.scope=stack", "tokens.mlp=off"}, "tokens.mlp", "only shared"},
        Fault{{"tokens.sink_blocks=-1"}, "tokens.sink_blocks", "at least 0, got -1"},
        Fault{{"tokens.local_blocks=-2"}, "tokens.local_blocks", "at least 0"},
        Fault{{"tokens.warmup_steps=-1"}, "tokens.warmup_steps", "at least 0"},
        Fault{{"tokens.anneal_steps=-1"}, "tokens.anneal_steps", "at least 0"},
        Fault{{"tokens.cooldown_steps=-1"}, "tokens.cooldown_steps", "at least 0"},
        Fault{{"tokens.block=0"}, "tokens.block", "at least 1, got 0"},
        Fault{{"tokens.chunk_blocks=0"}, "tokens.chunk_blocks", "at least 1"},
        Fault{{"tokens.scope=group", "tokens.group_layers=0"}, "tokens.group_layers", "at least 1"},
        Fault{
            {"tokens.scope=layer", "tokens.group_layers=2"}, "tokens.group_layers", "scope group"},
        Fault{{"tokens.predictor=there"}, "tokens.predictor", "is for policy predictor"},
        Fault{{"tokens.recall_every_steps=5"}, "tokens.recall_every_steps", "guesses at true"},
        Fault{{"tokens.policy=predictor", "tokens.recall_every_steps=-1"},
              "tokens.recall_every_steps",
              "at least 0"},
        Fault{{"tokens.online.layers_per_step=1"}, "tokens.online", "is for policy predictor"},
        Fault{{"tokens.policy=predictor", "tokens.online.layers_per_step=0"},
              "tokens.online.layers_per_step",
              "at least 1, got 0"},
        Fault{{"tokens.policy=predictor", "tokens.online.learning_rate=0"},
              "tokens.online.learning_rate",
              "above 0"},
        Fault{
            {"tokens.policy=predictor", "tokens.scope=layer", "tokens.mlp=own", "tokens.online={}"},
            "tokens.mlp",
            "do not learn online"},
        Fault{{"tokens.policy=predictor", "tokens.online={}", "tokens.warmup_steps=0",
               "tokens.recall_every_steps=0"},
              "tokens.online",
              "both are 0"},
        Fault{{"tokens.policy=predictor", "tokens.online={}", "tokens.keep=1"},
              "tokens.online",
              "nothing to learn"},
        Fault{{"tokens.table_score=loss"}, "tokens.table_score", "is for policy table"},
        Fault{{"tokens.policy=table", "tokens.table_score=less"}, "tokens.table_score", "low_loss"},
        Fault{{"tokens.policy=oracle", "tokens.combine=row"}, "tokens.combine", "column_mean"},
        Fault{{"tokens.threshold=0.5"}, "tokens.threshold", "is for mode threshold"},
        Fault{{"tokens.policy=norm", "tokens.scope=layer", "tokens.mode=threshold"},
              "tokens.threshold",
              "required"},
        Fault{{"tokens.policy=norm", "tokens.mode=threshold", "tokens.threshold=1"},
              "tokens.mode",
              "layer and group"},
        Fault{{"tokens.scope=layer", "tokens.mode=threshold", "tokens.threshold=1"},
              "tokens.mode",
              "nothing but their order"},
        Fault{{"tokens.policy=norm", "tokens.scope=layer", "tokens.mode=threshold",
               "tokens.threshold=[1, 2]"},
              "tokens.threshold",
              "it has 2"},
        Fault{{"tokens.scope=layer", "tokens.layers=allocated"},
              "tokens.layers",
              "for policy predictor, scope layer"},
        Fault{{"tokens.policy=predictor", "tokens.layers=allocated"},
              "tokens.layers",
              "for policy predictor, scope layer"},
        Fault{{"tokens.policy=predictor", "tokens.scope=layer", "tokens.layers=allocated",
               "tokens.mlp=own"},
              "tokens.mlp",
              "not with own"},
        Fault{{"tokens.policy=predictor", "tokens.scope=layer", "tokens.layers=allocated",
               "tokens.mode=threshold", "tokens.threshold=1"},
              "tokens.threshold",
              "leave it out"}));

TEST(TokenFaultsTogether, AllAreTold) {
  EXPECT_THAT(Faults({"tokens.policy=chance", "tokens.keep=7", "tokens.block=0",
                      "tokens.scope=nested", "tokens.mlp=off"}),
              SizeIs(4));
}

TEST(TokenFaultsTogether, ARunNeedsWhatItAsksFor) {
  lemo::v1::RunSpec spec;
  Violations violations;
  ApplyOverrides({"eval.sparse=true", "eval.write_rows=true"}, &spec, &violations);
  FillDefaults(&spec);
  ValidateRunSpec(spec, &violations);
  EXPECT_THAT(Texts(violations),
              AllOf(Contains(HasSubstr("eval.sparse: needs a tokens.policy that drops rows")),
                    Contains(HasSubstr("eval.write_rows: needs files in data.eval"))));
}

}  // namespace
}  // namespace lemo::train
