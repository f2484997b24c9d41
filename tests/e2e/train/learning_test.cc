// Policy `predictor` from spec to adapter: recall that is measured, and learning, on the way.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
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

// A run that needs no predictor: it begins with all rows and a new one, which learns, is measured,
// published, and then taken by name.
TEST(Predictor, LearnsOnTheWayAndIsAResult) {
  const Workspace workspace;
  for (const std::string scope : {"layer", "nested", "stack"}) {
    SCOPED_TRACE(scope);
    json spec = PredictedSpec(
        {{"scope", scope}, {"recall_every_steps", 2}, {"online", {{"layers_per_step", 2}}}}, 8);
    spec["output"]["dir"] = scope;
    const Outcome run = workspace.Run(spec);
    ASSERT_EQ(run.exit_code, 0) << run.out << run.err;
    std::vector<bool> sparse;
    bool measured = false;
    for (const json& step : run.Of("step")) {
      sparse.push_back(step.contains("sparsity"));
      measured |= sparse.back() && !step.at("sparsity").at("recall").empty();
    }
    // Two steps of all rows, and the first that anneals is one as well.
    EXPECT_EQ(sparse, (std::vector<bool>{false, false, false, true, true, true, true, true}));
    EXPECT_TRUE(measured);
    const std::string dir = run.Last("result").at("predictor_dir");
    EXPECT_EQ(dir, scope + "/predictor");
    const json card = json::parse(ReadAll(workspace.path() / dir / "card.json"));
    // Of the sparse steps of joint heads those 5 and 7 measure recall.
    EXPECT_EQ(card.at("training").at("steps"), scope == "layer" ? 8 : 5);
    EXPECT_TRUE(card.at("quality").at("held_out").get<bool>());
    EXPECT_FALSE(card.at("quality").at("heads").empty());

    spec["tokens"].erase("online");
    spec["tokens"]["predictor"] = dir;
    spec["output"]["dir"] = scope + "-named";
    const Outcome named = workspace.Run(spec);
    ASSERT_EQ(named.exit_code, 0) << named.out << named.err;
    EXPECT_TRUE(named.Of("step").front().contains("sparsity"));
    // And goes on learning from there, with no more steps of all rows than the spec asks for.
    spec["tokens"]["online"] = json::object();
    spec["output"]["dir"] = scope + "-on";
    const Outcome on = workspace.Run(spec);
    ASSERT_EQ(on.exit_code, 0) << on.out << on.err;
    EXPECT_TRUE(on.Of("step").front().contains("sparsity"));
    EXPECT_FALSE(on.Last("result").at("predictor_dir").get<std::string>().empty());
  }
}

// Steps of all rows are the dense run's to the bit, whatever learns beside them.
TEST(Predictor, LessonsChangeNothingOfTheModel) {
  const Workspace workspace;
  json spec = Workspace::Spec();
  spec["output"]["dir"] = "dense";
  const Outcome dense = workspace.Run(spec);
  ASSERT_EQ(dense.exit_code, 0) << dense.out << dense.err;
  for (const std::string scope : {"layer", "group", "nested", "stack"}) {
    SCOPED_TRACE(scope);
    spec = PredictedSpec({{"scope", scope}, {"warmup_steps", 4}, {"online", json::object()}}, 4);
    spec["output"]["dir"] = scope;
    const Outcome run = workspace.Run(spec);
    ASSERT_EQ(run.exit_code, 0) << run.out << run.err;
    EXPECT_EQ(run.Losses(), dense.Losses());
    EXPECT_EQ(Adapter(workspace, scope), Adapter(workspace, "dense"));
  }
}

TEST(Predictor, AResumedRunLearnsAsTheUnbrokenOne) {
  const Workspace workspace;
  for (const std::string scope : {"layer", "stack"}) {
    SCOPED_TRACE(scope);
    json spec =
        PredictedSpec({{"scope", scope}, {"recall_every_steps", 2}, {"online", json::object()}}, 6);
    spec["checkpoint"] = {{"every_steps", 3}, {"keep_last", 5}};
    spec["output"]["dir"] = scope;
    const Outcome whole = workspace.Run(spec);
    ASSERT_EQ(whole.exit_code, 0) << whole.out << whole.err;
    spec["output"]["dir"] = scope + "-resumed";
    const Outcome rest = workspace.Run(
        spec, {"--resume", whole.Of("checkpoint").front().at("path").get<std::string>()});
    ASSERT_EQ(rest.exit_code, 0) << rest.out << rest.err;
    ASSERT_EQ(rest.Losses().size(), 3u);
    for (const auto& [step, loss] : rest.Losses()) EXPECT_EQ(loss, whole.Losses().at(step)) << step;
    EXPECT_EQ(Adapter(workspace, scope + "-resumed"), Adapter(workspace, scope));
    // But for the card's date, which the file names by hash.
    const auto heads = [&](const std::string& out) {
      const json card = json::parse(ReadAll(workspace.path() / out / "predictor" / "card.json"));
      return std::pair(card.at("training").at("loss_curve"), card.at("quality"));
    };
    EXPECT_EQ(heads(scope + "-resumed"), heads(scope));
  }
}

// Lessons have their place in plan and budget: what an offer says is enough to the end, for a
// predictor that begins with the run as for one that goes on.
TEST(Predictor, LearnsWithinTheBudgetOfAnOffer) {
  const Workspace workspace;
  for (const std::string scope : {"layer", "nested", "stack"}) {
    SCOPED_TRACE(scope);
    json spec =
        PredictedSpec({{"scope", scope}, {"recall_every_steps", 2}, {"online", json::object()}}, 8);
    spec["data"]["max_length"] = 256;
    spec["checkpoint"] = {{"every_steps", 3}};
    for (const std::string from : {"new", "known"}) {
      SCOPED_TRACE(from);
      const Outcome plan = workspace.Run(spec, {"--plan", "--json"});
      ASSERT_EQ(plan.exit_code, 0) << plan.out << plan.err;
      const json offers = json::parse(plan.out).at("offers");
      const auto learns = std::find_if(offers.begin(), offers.end(), [](const json& offer) {
        return offer.at("kept").get<double>() < 1 && offer.at("window") == 256;
      });
      ASSERT_NE(learns, offers.end()) << plan.out;
      json run = spec;
      run.merge_patch(learns->at("overrides"));
      const auto high = learns->at("high").at("total").get<int64_t>();
      run["memory"]["budget_bytes"] = high;
      run["output"]["dir"] = absl::StrCat(scope, "-", from);
      const Outcome kept = workspace.Run(run);
      ASSERT_EQ(kept.exit_code, 0) << kept.out << kept.err;
      const json peak = kept.Last("result").at("peak_bytes");
      for (const char* category :
           {"weights", "trainable", "saved_activations", "transient", "loss", "total"}) {
        EXPECT_LE(peak.at(category).get<int64_t>(), learns->at("high").at(category).get<int64_t>())
            << category;
      }
      for (const json& amendment : kept.Of("amendment")) ADD_FAILURE() << amendment;
      spec["tokens"]["predictor"] = kept.Last("result").at("predictor_dir");
    }
  }
}

TEST(Predictor, LearnsInOneRank) {
  const Workspace workspace;
  json spec = PredictedSpec({{"online", json::object()}}, 4);
  spec["parallel"] = {{"data", 2}};
  const Outcome run = workspace.Run(spec);
  EXPECT_EQ(run.exit_code, 2) << run.out;
  EXPECT_THAT(run.out + run.err, testing::HasSubstr("tokens.online: is for one rank"));
}

}  // namespace
}  // namespace lemo::train
