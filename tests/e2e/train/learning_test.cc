// Policy `predictor` from spec to adapter: recall that is measured on the way.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/e2e/train/workspace.h"

namespace lemo::train {
namespace {

using nlohmann::json;

std::string Adapter(const Workspace& workspace, const std::string& out) {
  return ReadAll(workspace.path() / out / "adapter" / "adapter_model.safetensors");
}

// Steps on documents of several blocks, ranked by the predictor in `predictors`.
json PredictedSpec(const json& tokens, int steps) {
  json spec = Workspace::Spec();
  spec["train"]["steps"] = steps;
  spec["tokens"] = {
      {"policy", "predictor"}, {"predictors_dir", "predictors"}, {"keep", {0.5}}, {"block", 2}};
  spec["tokens"].update(tokens);
  return spec;
}

// A predictor for those runs, in `predictors`: its training is no subject here.
void TrainPredictor(const Workspace& workspace) {
  json spec = Workspace::Spec();
  spec.erase("tuner");
  spec["train"] = {{"steps", 3}};
  spec["predictor"] = {{"block", 2}, {"r1", 16}, {"r2", 16}, {"p", 8}};
  spec["output"]["dir"] = "predictors";
  const Outcome run = workspace.Run(spec);
  ASSERT_EQ(run.exit_code, 0) << run.out << run.err;
}

// Every so many steps one layer after another, and nothing of the run depends on it.
TEST(Predictor, RecallIsSampledAndChangesNothing) {
  const Workspace workspace;
  TrainPredictor(workspace);
  for (const std::string scope : {"layer", "stack"}) {
    SCOPED_TRACE(scope);
    json spec = PredictedSpec({{"scope", scope}, {"recall_every_steps", 2}}, 5);
    spec["output"]["dir"] = scope;
    const Outcome run = workspace.Run(spec);
    ASSERT_EQ(run.exit_code, 0) << run.out << run.err;
    std::vector<int> steps, layers;
    for (const json& step : run.Of("step")) {
      const json& sparsity = step.at("sparsity");
      if (sparsity.at("recall").empty()) continue;
      steps.push_back(step.at("step"));
      layers.push_back(sparsity.at("recall_layers")[0]);
      EXPECT_GE(sparsity.at("recall")[0].get<double>(), 0.0);
      EXPECT_LE(sparsity.at("recall")[0].get<double>(), 1.0);
    }
    EXPECT_EQ(steps, (std::vector<int>{1, 3, 5}));
    // Of five layers those from 1 to 3 choose for themselves.
    EXPECT_EQ(layers, scope == "layer" ? (std::vector<int>{1, 2, 3}) : (std::vector<int>{0, 0, 0}));

    spec["tokens"]["recall_every_steps"] = 0;
    spec["output"]["dir"] = scope + "-unmeasured";
    const Outcome unmeasured = workspace.Run(spec);
    ASSERT_EQ(unmeasured.exit_code, 0) << unmeasured.out << unmeasured.err;
    for (const json& step : unmeasured.Of("step")) {
      EXPECT_TRUE(step.at("sparsity").at("recall").empty());
    }
    EXPECT_EQ(unmeasured.Losses(), run.Losses());
    EXPECT_EQ(Adapter(workspace, scope + "-unmeasured"), Adapter(workspace, scope));
  }
}

}  // namespace
}  // namespace lemo::train
