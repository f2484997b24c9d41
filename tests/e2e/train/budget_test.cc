// A run under memory.budget_bytes, as its driver sees it: the budget is cut and raised while it
// goes on, one long row comes, or nothing can be done.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "common/files.h"
#include "tests/e2e/train/workspace.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
using Clock = Process::Clock;

constexpr std::chrono::minutes kPatience{2};

// Packed sequences of up to 256 tokens, so that layers keep more than the small model weighs.
json BudgetSpec(const std::string& out) {
  json spec = Workspace::Spec();
  spec["data"]["max_length"] = 256;
  spec["train"]["steps"] = 12;
  spec["train"]["micro_batch_tokens"] = 512;
  spec["memory"] = {{"policy", "all"}};
  spec["eval"] = {{"every_steps", 4}};
  spec["checkpoint"] = {{"every_steps", 5}};
  spec["output"]["dir"] = out;
  return spec;
}

json With(json spec, int64_t budget) {
  spec["memory"]["budget_bytes"] = budget;
  return spec;
}

int64_t PeakOf(const Outcome& run) {
  return run.Last("result").at("peak_bytes").at("total").get<int64_t>();
}

// The number behind "A budget of ".
int64_t LeastBudget(const Outcome& run) {
  const std::string message = run.Last("error").at("message");
  const size_t at = message.find("A budget of ");
  return at == std::string::npos ? 0 : std::stoll(message.substr(at + 12));
}

void ExpectSameLosses(const std::map<int, double>& losses, const std::map<int, double>& free) {
  ASSERT_EQ(losses.size(), free.size());
  for (const auto& [step, loss] : free) {
    EXPECT_NEAR(losses.at(step), loss, 1e-6 * std::abs(loss)) << step;
  }
}

// Every step says what the run could go on with: so much is enough from its beginning to its end.
TEST(Budget, WhatAStepSaysIsLeastIsEnough) {
  const Workspace workspace;
  const Outcome free = workspace.Run(BudgetSpec("free"));
  const Outcome roomy = workspace.Run(With(BudgetSpec("roomy"), PeakOf(free)));
  ASSERT_EQ(roomy.exit_code, 0) << roomy.out << roomy.err;
  int64_t least = 0;
  for (const json& step : roomy.Of("step")) {
    least = std::max(least, step.at("memory").at("least_bytes").get<int64_t>());
  }
  ASSERT_GT(least, 0);
  ASSERT_LT(least, PeakOf(free));
  const Outcome tight = workspace.Run(With(BudgetSpec("tight"), least));
  ASSERT_EQ(tight.exit_code, 0) << tight.out << tight.err;
  EXPECT_LE(PeakOf(tight), least);
  ExpectSameLosses(tight.Losses(), free.Losses());
}

TEST(Budget, ARunKeepsItAndLosesNothing) {
  const Workspace workspace;
  const Outcome free = workspace.Run(BudgetSpec("free"));
  ASSERT_EQ(free.exit_code, 0) << free.out << free.err;
  EXPECT_TRUE(free.Of("amendment").empty());
  EXPECT_FALSE(free.Last("step").contains("memory"));

  const Outcome refused = workspace.Run(With(BudgetSpec("refused"), 1000));
  ASSERT_EQ(refused.exit_code, 3) << refused.out << refused.err;
  EXPECT_FALSE(fs::exists(workspace.path() / "refused"));
  EXPECT_TRUE(refused.Of("step").empty());
  EXPECT_THAT(refused.Last("error").at("message").get<std::string>(),
              AllOf(HasSubstr("memory.budget_bytes: 1000 bytes"), HasSubstr("weights take"),
                    HasSubstr(" would do")));
  const int64_t least = LeastBudget(refused);
  ASSERT_GT(least, 1000);
  ASSERT_LT(least, PeakOf(free));

  for (const int64_t budget : {least, (least + PeakOf(free)) / 2}) {
    SCOPED_TRACE(budget);
    const std::string out = "out" + std::to_string(budget);
    const Outcome run = workspace.Run(With(BudgetSpec(out), budget));
    ASSERT_EQ(run.exit_code, 0) << run.out << run.err;
    EXPECT_LE(PeakOf(run), budget);
    ExpectSameLosses(run.Losses(), free.Losses());
    EXPECT_NEAR(run.Last("result").at("eval_loss").get<double>(),
                free.Last("result").at("eval_loss").get<double>(), 1e-5);
    ASSERT_FALSE(run.Of("amendment").empty());
    const json first = run.Of("amendment").front();
    EXPECT_EQ(first.at("budget_bytes"), budget);
    EXPECT_GT(first.at("predicted_bytes_before").get<int64_t>(), budget);
    EXPECT_LE(first.at("predicted_bytes_after").get<int64_t>(), budget);
    EXPECT_LE(first.at("measured_peak_bytes").get<int64_t>(),
              first.at("predicted_bytes_after").get<int64_t>());
    for (const json& step : run.Of("step")) {
      EXPECT_EQ(step.at("memory").at("budget_bytes"), budget);
      EXPECT_LE(step.at("memory").at("peak_bytes").get<int64_t>(), budget);
    }
    const json report = json::parse(ReadAll(workspace.path() / out / "report.json"));
    EXPECT_EQ(report.at("amendments").size(), run.Of("amendment").size());
    EXPECT_THAT(ReadAll(workspace.path() / out / "report.html"),
                HasSubstr("What the governor did"));
  }
}

TEST(Budget, ADriverCutsAndRaisesIt) {
  const Workspace workspace;
  const Outcome free = workspace.Run(BudgetSpec("free"));
  ASSERT_EQ(free.exit_code, 0) << free.out << free.err;
  const int64_t most = PeakOf(free);
  const int64_t least = LeastBudget(workspace.Run(With(BudgetSpec("refused"), 1)));
  ASSERT_LT(least, most);
  size_t amended = 0;
  for (unsigned seed = 1; seed <= 3; ++seed) {
    SCOPED_TRACE(seed);
    const std::string out = "out" + std::to_string(seed);
    std::mt19937 random(seed);
    std::map<int, double> losses;
    Process process(Workspace::Program(), workspace.Arguments(With(BudgetSpec(out), 2 * most)),
                    {.directory = workspace.path()});
    std::string text;
    while (const auto line = process.NextLine(Clock::now() + kPatience)) {
      text += *line + "\n";
      const json event = json::parse(*line);
      amended += event.at("type") == "amendment" ? 1 : 0;
      if (event.at("type") != "step") continue;
      losses[event.at("step")] = event.at("loss");
      EXPECT_LE(event.at("memory").at("peak_bytes").get<int64_t>(),
                event.at("memory").at("budget_bytes").get<int64_t>());
      const int64_t budget = least + static_cast<int64_t>(random() % (most - least));
      ASSERT_TRUE(
          WriteFileAtomic(workspace.path() / out / "budget", std::to_string(budget) + "\n").ok());
    }
    ASSERT_EQ(process.Wait(), 0) << text << process.Errors();
    ExpectSameLosses(losses, free.Losses());
  }
  EXPECT_GT(amended, 0u);
}

TEST(Budget, WhatCannotBeReadLeavesItAsItWas) {
  const Workspace workspace;
  workspace.Write("out/budget", "plenty");
  const Outcome run = workspace.Run(With(BudgetSpec("out"), int64_t{1} << 32));
  ASSERT_EQ(run.exit_code, 0) << run.out << run.err;
  ASSERT_EQ(run.Of("warning").size(), 1u);
  EXPECT_THAT(run.Last("warning").at("message").get<std::string>(),
              HasSubstr("expected a number of bytes above 0, got \"plenty\""));
  EXPECT_EQ(run.Last("step").at("memory").at("budget_bytes"), int64_t{1} << 32);
}

// What a plan offers is enough to the end, also where the text that is held out is far longer than
// any that is trained on.
TEST(Budget, OfAnOfferHasRoomForLongerTextThatIsHeldOut) {
  const Workspace workspace;
  std::string text = "the little girl had a big red ball and she";
  for (int i = 0; i < 4; ++i) text += " " + text;
  workspace.Write("eval.jsonl", json{{"text", text}}.dump() + "\n");
  json spec = Workspace::Spec();
  spec["data"]["max_length"] = 512;
  json learning = spec;
  learning.erase("tuner");
  learning["predictor"] = {{"block", 4}, {"r1", 16}, {"r2", 16}, {"p", 8}, {"allocate", 0.5}};
  for (json run : {spec, learning}) {
    const Outcome plan = workspace.Run(run, {"--plan", "--json"});
    ASSERT_EQ(plan.exit_code, 0) << plan.err;
    const json offer = json::parse(plan.out).at("offers")[0];
    run.merge_patch(offer.at("overrides"));
    const auto high = offer.at("high").at("total").get<int64_t>();
    const std::string dir = run.contains("tuner") ? "tuned" : "learnt";
    // Nor does a run take more that nothing holds to it.
    run["output"]["dir"] = dir + "-free";
    const Outcome free = workspace.Run(run);
    ASSERT_EQ(free.exit_code, 0) << free.out << free.err;
    EXPECT_LE(PeakOf(free), high);
    run["memory"]["budget_bytes"] = high;
    run["output"]["dir"] = dir;
    const Outcome kept = workspace.Run(run);
    ASSERT_EQ(kept.exit_code, 0) << kept.out << kept.err;
    EXPECT_LE(PeakOf(kept), high);
    for (const json& amendment : kept.Of("amendment")) ADD_FAILURE() << amendment;
  }
}

// The pain that this is for: a data set that fits, but for one row.
TEST(Budget, OneLongRowInAShortDataSet) {
  const Workspace workspace;
  json spec = BudgetSpec("short");
  spec["data"]["max_length"] = 512;
  spec["data"]["packing"] = false;
  spec["train"]["micro_batch_tokens"] = 512;
  spec["train"].erase("steps");
  spec["train"]["epochs"] = 1;
  spec.erase("eval");
  const Outcome short_rows = workspace.Run(spec);
  ASSERT_EQ(short_rows.exit_code, 0) << short_rows.out << short_rows.err;

  std::string text;
  for (int i = 0; i < 250; ++i) text += i % 7 == 0 ? "the " : "dog ";
  workspace.Write("train.jsonl",
                  ReadAll(workspace.path() / "train.jsonl") + json{{"text", text}}.dump() + "\n");
  spec["output"]["dir"] = "free";
  const Outcome free = workspace.Run(spec);
  ASSERT_EQ(free.exit_code, 0) << free.out << free.err;
  ASSERT_GT(PeakOf(free), PeakOf(short_rows));
  spec["output"]["dir"] = "refused";
  const int64_t least = LeastBudget(workspace.Run(With(spec, 1)));
  const int64_t budget = std::max(least, PeakOf(short_rows) + (64 << 10));
  ASSERT_LT(budget, PeakOf(free));
  spec["output"]["dir"] = "kept";
  const Outcome run = workspace.Run(With(spec, budget));
  ASSERT_EQ(run.exit_code, 0) << run.out << run.err;
  EXPECT_LE(PeakOf(run), budget);
  ExpectSameLosses(run.Losses(), free.Losses());
  ASSERT_FALSE(run.Of("amendment").empty());

  // It was run before the first step, as it would have to be.
  ASSERT_FALSE(run.Of("rehearsal").empty());
  const json rehearsal = run.Of("rehearsal").front();
  EXPECT_LT(rehearsal.at("sequence"), run.Of("step").front().at("sequence"));
  EXPECT_EQ(rehearsal.at("step"), run.Of("amendment").front().at("step"));
  EXPECT_GE(rehearsal.at("longest").get<int>(), 250);
  EXPECT_GE(rehearsal.at("rows"), rehearsal.at("longest"));
  EXPECT_FALSE(rehearsal.at("refused"));
  EXPECT_EQ(rehearsal.at("budget_bytes"), budget);
  EXPECT_FALSE(rehearsal.at("changes").empty());
  EXPECT_LE(rehearsal.at("predicted_bytes").get<int64_t>(), budget);
  EXPECT_LE(rehearsal.at("peak_bytes"), rehearsal.at("predicted_bytes"));
  const json report = json::parse(ReadAll(workspace.path() / "kept" / "report.json"));
  EXPECT_EQ(report.at("rehearsals").size(), run.Of("rehearsal").size());
  // With room for everything there is nothing to try.
  spec["output"]["dir"] = "roomy";
  const Outcome roomy = workspace.Run(With(spec, 2 * PeakOf(free)));
  ASSERT_EQ(roomy.exit_code, 0) << roomy.out << roomy.err;
  EXPECT_TRUE(roomy.Of("rehearsal").empty());
}

// Blocks with labels stay whatever their score, and how many those are no length tells.
TEST(Budget, WhatOnlyTheRehearsalFindsCostsNoStep) {
  const Workspace workspace;
  std::string prompt, answer, rows;
  for (int i = 0; i < 160; ++i) (i < 130 ? prompt : answer) += i % 7 == 0 ? " the" : " dog";
  for (int i = 0; i < 6; ++i) {
    rows += json{{"prompt", prompt}, {"completion", answer}}.dump() + "\n";
  }
  workspace.Write("train.jsonl", rows);
  json spec = BudgetSpec("out");
  spec["data"].erase("eval");
  spec.erase("eval");
  spec["data"]["max_length"] = 512;
  spec["tokens"] = {{"policy", "random"}, {"scope", "stack"},  {"keep", {0.04}},   {"block", 4},
                    {"layers", "all"},    {"warmup_steps", 0}, {"anneal_steps", 0}};
  const int64_t least = LeastBudget(workspace.Run(With(spec, 1)));
  ASSERT_GT(least, 0);
  const Outcome run = workspace.Run(With(spec, least));
  ASSERT_EQ(run.exit_code, 3) << run.out << run.err;
  EXPECT_EQ(run.Of("phase").back().at("name"), "rehearse");
  EXPECT_TRUE(run.Of("step").empty());
  EXPECT_FALSE(fs::exists(workspace.path() / "out"));
  EXPECT_THAT(run.Last("error").at("message").get<std::string>(),
              AllOf(HasSubstr("memory.budget_bytes: step "), HasSubstr(" would do")));
  // And that does.
  const Outcome kept = workspace.Run(With(spec, LeastBudget(run)));
  EXPECT_EQ(kept.exit_code, 0) << kept.out << kept.err;
  EXPECT_FALSE(kept.Of("rehearsal").empty());
}

TEST(Budget, IsNoPartOfWhatARunIs) {
  const Workspace workspace;
  json spec = BudgetSpec("out");
  const Outcome free = workspace.Run(BudgetSpec("free"));
  const int64_t least = LeastBudget(workspace.Run(With(BudgetSpec("refused"), 1)));
  spec["train"]["steps"] = 12;
  // Stopped by what it may not have, and gone on with what it may.
  Process process(Workspace::Program(), workspace.Arguments(With(spec, int64_t{1} << 32)),
                  {.directory = workspace.path()});
  while (const auto line = process.NextLine(Clock::now() + kPatience)) {
    const json event = json::parse(*line);
    if (event.at("type") == "step" && event.at("step") == 6) {
      ASSERT_TRUE(WriteFileAtomic(workspace.path() / "out" / "budget", "1\n").ok());
    }
  }
  ASSERT_EQ(process.Wait(), 3) << process.Errors();
  fs::remove(workspace.path() / "out" / "budget");
  const Outcome resumed = workspace.Run(With(spec, least), {"--resume", "auto"});
  ASSERT_EQ(resumed.exit_code, 0) << resumed.out << resumed.err;
  EXPECT_LE(PeakOf(resumed), least);
  const std::map<int, double> losses = resumed.Losses(), expected = free.Losses();
  EXPECT_EQ(losses.rbegin()->first, 12);
  for (const auto& [step, loss] : losses) {
    EXPECT_NEAR(loss, expected.at(step), 1e-6 * std::abs(loss)) << step;
  }
}

}  // namespace
}  // namespace lemo::train
