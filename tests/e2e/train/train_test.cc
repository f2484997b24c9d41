// Training runs from spec to adapter, and what may not change their result.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/e2e/train/workspace.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::string Adapter(const Workspace& workspace, const std::string& out) {
  return ReadAll(workspace.path() / out / "adapter" / "adapter_model.safetensors");
}

TEST(Train, MakesAnAdapterAndTellsAllOfIt) {
  const Workspace workspace;
  json spec = Workspace::Spec();
  spec["model"]["path"] = workspace.CopyModel().filename().string();
  spec["checkpoint"] = {{"every_steps", 2}};
  const auto before = workspace.Snapshot();
  const Outcome run = workspace.Run(spec);
  ASSERT_EQ(run.exit_code, 0) << run.out << run.err;
  EXPECT_EQ(run.err, "");

  // Every line is one object with a type; sequence numbers have no gaps.
  int64_t sequence = 0;
  EXPECT_EQ(run.events.size(), std::count(run.out.begin(), run.out.end(), '\n'));
  for (const json& event : run.events) {
    EXPECT_THAT(event.at("type").get<std::string>(),
                testing::AnyOf("phase", "step", "eval", "checkpoint", "warning", "result"));
    EXPECT_EQ(event.at("sequence").get<int64_t>(), ++sequence);
  }
  EXPECT_EQ(run.Of("step").size(), 4u);
  EXPECT_EQ(run.Of("eval").size(), 2u);
  EXPECT_EQ(run.Of("checkpoint").size(), 2u);
  EXPECT_EQ(run.events.back().at("type"), "result");

  const json result = run.Last("result");
  EXPECT_EQ(result.at("steps"), 4);
  EXPECT_EQ(result.at("train_loss"), run.Of("step").back().at("loss"));
  EXPECT_EQ(result.at("eval_loss_before"), run.Of("eval").front().at("loss"));
  EXPECT_EQ(result.at("eval_loss"), run.Of("eval").back().at("loss"));
  EXPECT_LT(result.at("eval_loss").get<double>(), result.at("eval_loss_before").get<double>());
  int64_t labelled = 0;
  for (const json& step : run.Of("step")) labelled += step.at("labelled_tokens").get<int64_t>();
  EXPECT_EQ(result.at("labelled_tokens"), labelled);
  EXPECT_GT(result.at("tokens_per_second").get<double>(), 0);
  for (const char* name :
       {"weights", "trainable", "saved_activations", "transient", "loss", "total"}) {
    EXPECT_GT(result.at("peak_bytes").at(name).get<int64_t>(), 0) << name;
  }
  EXPECT_LE(result.at("publish_max_logit_difference").get<double>(), 1e-4);

  const fs::path adapter = workspace.path() / result.at("adapter_dir").get<std::string>();
  EXPECT_EQ(adapter, workspace.path() / "out/adapter");
  for (const char* name : {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json",
                           "tokenizer_config.json"}) {
    EXPECT_TRUE(fs::is_regular_file(adapter / name)) << name;
  }
  const json config = json::parse(ReadAll(adapter / "adapter_config.json"));
  EXPECT_EQ(config.at("peft_type"), "LORA");
  EXPECT_EQ(config.at("r"), 4);
  for (const char* name : {"report.json", "report.html", "trainer_state.json"}) {
    EXPECT_GT(fs::file_size(workspace.path() / "out" / name), 0u) << name;
  }
  EXPECT_TRUE(json::accept(ReadAll(workspace.path() / "out/report.json")));
  EXPECT_EQ(json::parse(ReadAll(workspace.path() / "out/trainer_state.json")).at("global_step"), 4);

  // Model and data are as they were.
  auto after = workspace.Snapshot();
  for (const auto& [name, hash] : before) EXPECT_EQ(after[name], hash) << name;
}

TEST(Train, TheSameSeedGivesTheSameBytesAndAnotherDoesNot) {
  const Workspace workspace;
  json spec = Workspace::Spec();
  spec["tuner"]["lora"]["dropout"] = 0.1;
  std::vector<std::map<int, double>> losses;
  for (const char* out : {"a", "b", "c"}) {
    spec["output"]["dir"] = out;
    spec["train"]["seed"] = std::string(out) == "c" ? 8 : 7;
    const Outcome run = workspace.Run(spec);
    ASSERT_EQ(run.exit_code, 0) << run.out << run.err;
    losses.push_back(run.Losses());
  }
  EXPECT_EQ(losses[0], losses[1]);
  EXPECT_EQ(Adapter(workspace, "a"), Adapter(workspace, "b"));
  EXPECT_NE(losses[0], losses[2]);
  EXPECT_NE(Adapter(workspace, "a"), Adapter(workspace, "c"));
}

TEST(Train, TheSplitIntoMicroBatchesChangesNothing) {
  const Workspace workspace;
  json spec = Workspace::Spec();
  spec["train"]["batch_sequences"] = 4;
  std::map<int, double> whole;
  for (const int rows : {256, 128, 64}) {
    spec["output"]["dir"] = "out" + std::to_string(rows);
    spec["train"]["micro_batch_tokens"] = rows;
    const Outcome run = workspace.Run(spec);
    ASSERT_EQ(run.exit_code, 0) << run.out << run.err;
    if (whole.empty()) whole = run.Losses();
    const auto losses = run.Losses();
    ASSERT_EQ(losses.size(), 4u);
    for (const auto& [step, loss] : losses) {
      EXPECT_NEAR(loss, whole.at(step), 1e-6 * whole.at(step)) << rows << " rows, step " << step;
    }
  }
}

TEST(Train, SkippedPositionsAreTheSameWhereverARunIsTakenUp) {
  const Workspace workspace;
  json spec = Workspace::Spec();
  spec["data"]["skip_positions"] = {{"target", 512}};
  spec["train"]["batch_sequences"] = 4;
  spec["checkpoint"] = {{"every_steps", 2}, {"keep_last", 5}};
  const auto run = [&](const std::string& out, std::vector<std::string> args = {}) {
    spec["output"]["dir"] = out;
    const Outcome outcome = workspace.Run(spec, std::move(args));
    EXPECT_EQ(outcome.exit_code, 0) << outcome.out << outcome.err;
    return outcome;
  };
  const Outcome whole = run("whole");
  const std::string half = whole.Of("checkpoint").at(0).at("path");
  for (const auto& [step, loss] : run("resumed", {"--resume", half}).Losses()) {
    EXPECT_EQ(loss, whole.Losses().at(step)) << step;
  }
  EXPECT_EQ(Adapter(workspace, "resumed"), Adapter(workspace, "whole"));
  spec["train"]["micro_batch_tokens"] = 256;
  for (const auto& [step, loss] : run("rows256").Losses()) {
    EXPECT_NEAR(loss, whole.Losses().at(step), 1e-6 * loss) << step;
  }

  // Another run than that of consecutive positions, whose evaluation is the same.
  spec["train"].erase("micro_batch_tokens");
  spec["data"]["skip_positions"]["chunks"] = 1;
  const Outcome uncut = run("uncut");
  spec["data"].erase("skip_positions");
  const Outcome plain = run("plain");
  EXPECT_EQ(uncut.Losses(), plain.Losses());
  EXPECT_EQ(Adapter(workspace, "uncut"), Adapter(workspace, "plain"));
  EXPECT_NE(whole.Losses(), plain.Losses());
  EXPECT_EQ(whole.Last("result").at("eval_loss_before"),
            plain.Last("result").at("eval_loss_before"));
}

TEST(Train, EveryStoragePolicyGivesTheSameBytes) {
  const Workspace workspace;
  json spec = Workspace::Spec();
  spec["tuner"]["lora"]["targets"] = {"all-linear"};
  spec["tuner"]["lora"]["dropout"] = 0.05;
  spec["train"]["steps"] = 3;
  std::string adapter;
  std::map<int, double> losses;
  for (const std::string policy : {"all", "mlp", "attn_out", "input"}) {
    for (const std::string offload : {"", "+offload"}) {
      spec["memory"] = {{"policy", policy + offload}};
      spec["output"]["dir"] = policy + offload;
      const Outcome run = workspace.Run(spec);
      ASSERT_EQ(run.exit_code, 0) << policy << offload << "\n" << run.out << run.err;
      if (losses.empty()) {
        losses = run.Losses();
        adapter = Adapter(workspace, policy + offload);
        ASSERT_FALSE(adapter.empty());
      }
      EXPECT_EQ(run.Losses(), losses) << policy << offload;
      EXPECT_EQ(Adapter(workspace, policy + offload), adapter) << policy << offload;
    }
  }
}

TEST(Train, FullAndMergedModelsAreWritten) {
  const Workspace workspace;
  json full = Workspace::Spec();
  full["tuner"] = {{"full", json::object()}};
  full["output"]["dir"] = "full";
  json merged = Workspace::Spec();
  merged["output"] = {{"dir", "merged"}, {"merge", true}};
  for (const json& spec : {full, merged}) {
    const Outcome run = workspace.Run(spec);
    ASSERT_EQ(run.exit_code, 0) << run.out << run.err;
    const fs::path model = workspace.path() / run.Last("result").at("model_dir").get<std::string>();
    EXPECT_TRUE(fs::is_regular_file(model / "model.safetensors"));
    EXPECT_TRUE(fs::is_regular_file(model / "config.json"));
    // What was written is a model again, as good as the run said.
    json again = Workspace::Spec();
    again["model"]["path"] = model.string();
    const Outcome eval = workspace.Run(again, {"--eval-only"});
    ASSERT_EQ(eval.exit_code, 0) << eval.out << eval.err;
    const double said = run.Last("result").at("eval_loss");
    EXPECT_NEAR(eval.Last("result").at("eval_loss").get<double>(), said, 1e-5 * said);
  }
}

}  // namespace
}  // namespace lemo::train
