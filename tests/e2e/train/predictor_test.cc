// From a predictor's training, shares by layer and all, to runs whose rows it chooses.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/e2e/train/workspace.h"

namespace lemo::train {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::StartsWith;

json PredictorSpec(const json& predictor) {
  json spec = Workspace::Spec();
  spec.erase("tuner");
  spec["predictor"] = {{"block", 4}, {"r1", 16}, {"r2", 16}, {"p", 8}};
  spec["predictor"].update(predictor);
  spec["train"] = {{"steps", 6}, {"batch_sequences", 2}, {"seed", 7}};
  return spec;
}

json TunedSpec(const json& tokens) {
  json spec = Workspace::Spec();
  spec["output"]["dir"] = "tuned";
  spec["tokens"] = {{"policy", "predictor"}, {"predictor", "out/predictor"},
                    {"scope", "layer"},      {"layers", "allocated"},
                    {"keep", {0.6}},         {"block", 4}};
  spec["tokens"].update(tokens);
  return spec;
}

// What the run was in the end.
json EffectiveTokens(const Workspace& workspace, const std::string& out) {
  return json::parse(ReadAll(workspace.path() / out / "report.json")).at("spec").at("tokens");
}

double Mean(const json& values) {
  double sum = 0;
  for (const json& value : values) sum += value.get<double>();
  return sum / static_cast<double>(values.size());
}

// What its plan says it takes is what it may have: with less it does not begin.
TEST(Predictor, KeepsABudgetThatIsPlanned) {
  const Workspace workspace;
  json spec = PredictorSpec(json::object());
  const Outcome plan = workspace.Run(spec, {"--plan", "--json"});
  ASSERT_EQ(plan.exit_code, 0) << plan.out << plan.err;
  const json offers = json::parse(plan.out).at("offers");
  ASSERT_FALSE(offers.empty());
  const json& offer = offers[0];
  const int64_t high = offer.at("high").at("total").get<int64_t>();
  for (const auto& [field, value] : offer.at("overrides").at("train").items()) {
    spec["train"][field] = value;
  }
  spec["memory"] = {{"budget_bytes", high}};
  const Outcome kept = workspace.Run(spec);
  ASSERT_EQ(kept.exit_code, 0) << kept.out << kept.err;
  const json result = kept.Last("result");
  EXPECT_LE(result.at("peak_bytes").at("total").get<int64_t>(), high);
  EXPECT_GE(result.at("peak_bytes").at("total").get<int64_t>(), 9 * high / 10);
  EXPECT_EQ(result.at("forecast").at("high_peak_bytes").get<int64_t>(), high);
  EXPECT_GT(result.at("forecast").at("measured_step_seconds").get<double>(), 0);

  spec["output"]["dir"] = "refused";
  spec["memory"]["budget_bytes"] = high - 1;
  const Outcome refused = workspace.Run(spec);
  EXPECT_NE(refused.exit_code, 0);
  EXPECT_THAT(refused.Last("error").at("message").get<std::string>(),
              StartsWith("memory.budget_bytes: "));
  EXPECT_FALSE(std::filesystem::exists(workspace.path() / "refused/predictor"));
}

TEST(Predictor, MeasuresSharesByLayerThatRunsTake) {
  const Workspace workspace;
  const Outcome trained = workspace.Run(PredictorSpec({{"allocate", 0.5}}));
  ASSERT_EQ(trained.exit_code, 0) << trained.out << trained.err;
  const json card = json::parse(ReadAll(workspace.path() / "out/predictor/card.json"));
  const json& allocated = card.at("allocated");
  EXPECT_EQ(allocated.at("mlp"), "shared");
  EXPECT_EQ(allocated.at("sequences"), 4);  // of eval.jsonl
  EXPECT_NEAR(Mean(allocated.at("keep")), 0.5, 1e-9);
  ASSERT_EQ(allocated.at("rise").size(), 5u);
  for (const json& rise : allocated.at("rise"))
    ASSERT_EQ(rise.size(), allocated.at("shares").size());
  EXPECT_GT(allocated.at("loss_gap").get<double>(), 0);  // half of the rows, before any tuning

  // With another mean the same figures are dealt out anew.
  const Outcome run = workspace.Run(TunedSpec(json::object()));
  ASSERT_EQ(run.exit_code, 0) << run.out << run.err;
  const json effective = EffectiveTokens(workspace, "tuned");
  ASSERT_EQ(effective.at("keep").size(), 5u);
  EXPECT_NEAR(Mean(effective.at("keep")), 0.6, 1e-9);
  for (const json& step : run.Of("step")) {
    // Documents are kept in whole blocks, at least as many as the share says.
    EXPECT_GE(Mean(step.at("sparsity").at("attention_kept")), 0.6);
    EXPECT_LT(Mean(step.at("sparsity").at("attention_kept")), 0.85);
  }

  // What a plan says of them.
  const Outcome plan = workspace.Run(TunedSpec(json::object()), {"--plan", "--json"});
  ASSERT_EQ(plan.exit_code, 0) << plan.out << plan.err;
  EXPECT_THAT(plan.out, HasSubstr("the loss of this model is "));
  EXPECT_THAT(plan.out, HasSubstr("\"loss_gap\""));

  // And what it does not fit.
  json spec = TunedSpec({{"mlp", "off"}});
  spec["output"]["dir"] = "other";
  const Outcome other = workspace.Run(spec);
  EXPECT_EQ(other.exit_code, 2);
  EXPECT_THAT(std::string(other.Last("error").at("message")),
              HasSubstr("with which they were measured, is shared, wanted is off"));
  spec["tokens"].erase("mlp");
  spec["tokens"]["mode"] = "threshold";
  const Outcome thresholds = workspace.Run(spec);
  EXPECT_EQ(thresholds.exit_code, 2);
  EXPECT_THAT(std::string(thresholds.Last("error").at("message")),
              HasSubstr("it has no thresholds by layer"));
}

TEST(Predictor, MovesThresholdsByFiniteDifferences) {
  const Workspace workspace;
  const Outcome trained = workspace.Run(
      PredictorSpec({{"allocate", 0.5}, {"allocate_by", "fd"}, {"allocate_mlp", "off"}}));
  ASSERT_EQ(trained.exit_code, 0) << trained.out << trained.err;
  const json card = json::parse(ReadAll(workspace.path() / "out/predictor/card.json"));
  const json& allocated = card.at("allocated");
  EXPECT_EQ(allocated.at("threshold").size(), 5u);
  EXPECT_NEAR(Mean(allocated.at("keep")), 0.5, 0.2);

  const Outcome run = workspace.Run(TunedSpec({{"mode", "threshold"}, {"mlp", "off"}}));
  ASSERT_EQ(run.exit_code, 0) << run.out << run.err;
  const json effective = EffectiveTokens(workspace, "tuned");
  EXPECT_EQ(effective.at("threshold"), allocated.at("threshold"));
  const json kept = run.Last("step").at("sparsity").at("attention_kept");
  EXPECT_NEAR(Mean(kept), Mean(allocated.at("keep")), 0.2);
  for (const json& share : run.Last("step").at("sparsity").at("mlp_kept")) EXPECT_EQ(share, 1.0);
}

TEST(Predictor, IsTrainedFirstWithSharesWhereThereIsNone) {
  const Workspace workspace;
  json spec = TunedSpec({{"predictor", "auto"}, {"predictors_dir", "predictors"}});
  const Outcome first = workspace.Run(spec);
  ASSERT_EQ(first.exit_code, 0) << first.out << first.err;
  std::vector<std::string> phases;
  for (const json& phase : first.Of("phase")) phases.push_back(phase.at("name"));
  EXPECT_THAT(phases, testing::Contains("allocate"));
  const std::string found = EffectiveTokens(workspace, "tuned").at("predictor");
  EXPECT_THAT(found, StartsWith("predictors/predictor-"));
  spec["output"]["dir"] = "again";
  const Outcome second = workspace.Run(spec);
  ASSERT_EQ(second.exit_code, 0) << second.out << second.err;
  EXPECT_EQ(EffectiveTokens(workspace, "again").at("predictor"), found);
  EXPECT_EQ(second.Losses(), first.Losses());
  // What training it took is not in the run's peak.
  EXPECT_EQ(second.Last("result").at("peak_bytes").at("weights"),
            first.Last("result").at("peak_bytes").at("weights"));
}

TEST(Predictor, FaultsNameTheField) {
  const Workspace workspace;
  const auto error = [&](const json& predictor) {
    const Outcome run = workspace.Run(PredictorSpec(predictor));
    EXPECT_EQ(run.exit_code, 2);
    return std::string(run.Last("error").at("message"));
  };
  EXPECT_THAT(error({{"allocate", 1.0}}), HasSubstr("predictor.allocate: "));
  EXPECT_THAT(error({{"allocate", 0.5}, {"allocate_by", "fdd"}}),
              HasSubstr("predictor.allocate_by: \"fdd\" is not one of"));
  EXPECT_THAT(error({{"allocate", 0.5}, {"allocate_mlp", "own"}}),
              HasSubstr("predictor.allocate_mlp: "));
}

}  // namespace
}  // namespace lemo::train
