// Policy table as a user meets it: scored once, kept, and taken up again by a resumed run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "tests/e2e/train/workspace.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::HasSubstr;

json TableSpec(const std::string& tuner, const std::string& score) {
  json spec = Workspace::Spec();
  if (tuner == "full") spec["tuner"] = {{"full", json::object()}};
  spec["tokens"] = {{"policy", "table"}, {"table_score", score}, {"keep", {0.6}}, {"block", 4}};
  spec["train"]["steps"] = 6;
  spec["checkpoint"] = {{"every_steps", 3}};
  spec["eval"] = {{"sparse", true}};
  return spec;
}

bool Scored(const Outcome& run) {
  for (const json& phase : run.Of("phase")) {
    if (phase.at("name") == "score") return true;
  }
  return false;
}

// The run of `whole` from step 4 on, in the state in which step 3 left its directory.
std::map<int, double> After(const Outcome& whole, int step) {
  std::map<int, double> losses = whole.Losses();
  losses.erase(losses.begin(), losses.upper_bound(step));
  return losses;
}

TEST(BlockScores, AResumedRunGivesTheSameBitsWithTheTableOrWithout) {
  for (const std::string tuner : {"lora", "full"}) {
    const Workspace workspace;
    const json spec = TableSpec(tuner, tuner == "lora" ? "low_loss" : "attention");
    const std::string file =
        tuner == "lora" ? "adapter/adapter_model.safetensors" : "model/model.safetensors";
    const Outcome whole = workspace.Run(spec);
    ASSERT_EQ(whole.exit_code, 0) << whole.out << whole.err;
    EXPECT_TRUE(Scored(whole));
    EXPECT_LT(whole.Of("step")[0].at("sparsity").at("attention_kept")[0], 0.9);
    EXPECT_GT(whole.Of("eval").back().at("sparse_loss").get<double>(), 0.0);
    const fs::path out = workspace.path() / "out", table = out / "block-scores.safetensors";
    const std::string result = ReadAll(out / file), scores = ReadAll(table);

    for (const std::string kept : {"whole", "gone", "damaged"}) {
      fs::remove_all(out / "adapter");
      fs::remove_all(out / "model");
      fs::remove_all(out / "checkpoints/step-00000006");
      if (kept == "gone") fs::remove(table);
      if (kept == "damaged") fs::resize_file(table, 100);
      const Outcome resumed = workspace.Run(spec, {"--resume", "auto"});
      ASSERT_EQ(resumed.exit_code, 0) << resumed.out << resumed.err;
      EXPECT_EQ(Scored(resumed), kept != "whole") << tuner << ", table " << kept;
      EXPECT_EQ(resumed.Losses(), After(whole, 3)) << tuner << ", table " << kept;
      EXPECT_EQ(resumed.Losses().size(), 3u);
      EXPECT_TRUE(ReadAll(out / file) == result) << tuner << ", table " << kept;
      if (kept == "whole") {
        EXPECT_TRUE(ReadAll(table) == scores) << tuner;
      }
      if (kept == "damaged") {
        EXPECT_THAT(resumed.out, HasSubstr("block scores are made anew"));
      }
    }
  }
}

TEST(BlockScores, EveryScoreRanksOtherBlocksAndTheMlpHasNoneOfItsOwn) {
  const Workspace workspace;
  std::map<int, double> former;
  for (const char* score : {"attention", "loss", "low_loss", "entropy"}) {
    json spec = TableSpec("lora", score);
    spec["output"]["dir"] = score;
    const Outcome run = workspace.Run(spec);
    ASSERT_EQ(run.exit_code, 0) << run.out << run.err;
    EXPECT_NE(run.Losses(), former) << score;
    former = run.Losses();
  }
  json own = TableSpec("lora", "loss");
  own["tokens"]["scope"] = "layer";
  own["tokens"]["mlp"] = "own";
  own["output"]["dir"] = "own";
  const Outcome refused = workspace.Run(own);
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(refused.out + refused.err, HasSubstr("tokens.mlp"));
}

}  // namespace
}  // namespace lemo::train
