// A stop by signal saves at the next step border; a second signal ends at once.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>

#include "tests/e2e/train/workspace.h"

namespace lemo::train {
namespace {

using nlohmann::json;
using Clock = Process::Clock;

constexpr std::chrono::minutes kPatience{1};

json LongSpec(const std::string& out) {
  json spec = Workspace::Spec();
  spec["train"]["steps"] = 80;
  spec["output"]["dir"] = out;
  return spec;
}

// Reads events until `type` (and, for steps, number) has come; false when the output ends before.
bool ReadUntil(Process& process, const std::string& type, int step, std::vector<json>* events) {
  while (const auto line = process.NextLine(Clock::now() + kPatience)) {
    events->push_back(json::parse(*line));
    const json& event = events->back();
    if (event.at("type") == type && (step == 0 || event.at("step") == step)) return true;
  }
  return false;
}

std::vector<json> Rest(Process& process) {
  std::vector<json> events;
  ReadUntil(process, "", 0, &events);
  return events;
}

TEST(Signal, StopsAtAStepBorderAndResumesExactly) {
  const Workspace workspace;
  const Outcome whole = workspace.Run(LongSpec("whole"));
  ASSERT_EQ(whole.exit_code, 0) << whole.out << whole.err;
  for (const auto& [signal, step] : {std::pair{SIGTERM, 3}, std::pair{SIGINT, 7}}) {
    const std::string out = "stopped" + std::to_string(signal);
    std::vector<json> events;
    int stopped_at = 0;
    {
      Process process(Workspace::Program(), workspace.Arguments(LongSpec(out)),
                      {.directory = workspace.path()});
      ASSERT_TRUE(ReadUntil(process, "step", step, &events)) << process.Errors();
      process.Signal(signal);
      const std::vector<json> rest = Rest(process);
      ASSERT_EQ(process.Wait(), 128 + signal) << process.Errors();
      for (const json& event : rest) {
        if (event.at("type") == "step") stopped_at = event.at("step");
      }
      stopped_at = std::max(stopped_at, step);
      ASSERT_GE(rest.size(), 2u);
      const json& checkpoint = rest[rest.size() - 2];
      EXPECT_EQ(checkpoint.at("type"), "checkpoint");
      EXPECT_EQ(checkpoint.at("reason"), "signal");
      EXPECT_EQ(checkpoint.at("step"), stopped_at);
      EXPECT_EQ(rest.back().at("type"), "result");
      EXPECT_EQ(rest.back().at("interrupted"), true);
      EXPECT_EQ(rest.back().at("steps"), stopped_at);
      // It had its chance to stop, not to finish.
      EXPECT_LE(stopped_at, step + 40);
    }
    // Going on is asked for, not guessed.
    const Outcome refused = workspace.Run(LongSpec(out));
    EXPECT_EQ(refused.exit_code, 2);
    EXPECT_THAT(refused.out, testing::HasSubstr("--resume auto"));

    const Outcome resumed = workspace.Run(LongSpec(out), {"--resume", "auto"});
    ASSERT_EQ(resumed.exit_code, 0) << resumed.out << resumed.err;
    EXPECT_EQ(resumed.Of("checkpoint").front().at("reason"), "resumed");
    std::map<int, double> expected = whole.Losses();
    expected.erase(expected.begin(), expected.upper_bound(stopped_at));
    EXPECT_EQ(resumed.Losses(), expected);
    for (const char* key : {"train_loss", "eval_loss_before", "eval_loss", "labelled_tokens"}) {
      EXPECT_EQ(resumed.Last("result").at(key), whole.Last("result").at(key)) << key;
    }
    EXPECT_EQ(ReadAll(workspace.path() / out / "adapter/adapter_model.safetensors"),
              ReadAll(workspace.path() / "whole/adapter/adapter_model.safetensors"));
  }
}

TEST(Signal, BeforeTheFirstStepStopsWithoutACheckpoint) {
  const Workspace workspace;
  {
    Process process(Workspace::Program(), workspace.Arguments(LongSpec("out")),
                    {.directory = workspace.path()});
    std::vector<json> events;
    ASSERT_TRUE(ReadUntil(process, "phase", 0, &events)) << process.Errors();
    process.Signal(SIGTERM);
    const std::vector<json> rest = Rest(process);
    EXPECT_EQ(process.Wait(), 128 + SIGTERM) << process.Errors();
    for (const json& event : rest) EXPECT_NE(event.at("type"), "step");
  }
  json spec = LongSpec("out");
  const Outcome anew = workspace.Run(spec);
  EXPECT_EQ(anew.exit_code, 0) << anew.out;
}

TEST(Signal, TheSecondEndsAtOnce) {
  const Workspace workspace;
  Process process(Workspace::Program(), workspace.Arguments(LongSpec("out")),
                  {.directory = workspace.path()});
  std::vector<json> events;
  ASSERT_TRUE(ReadUntil(process, "step", 2, &events)) << process.Errors();
  // Both wait for it when it goes on, so that no step border comes between them.
  process.Signal(SIGSTOP);
  process.Signal(SIGTERM);
  process.Signal(SIGINT);
  process.Signal(SIGCONT);
  for (const json& event : Rest(process)) {
    EXPECT_THAT(event.at("type").get<std::string>(),
                testing::AllOf(testing::Ne("checkpoint"), testing::Ne("result")));
  }
  EXPECT_THAT(process.Wait(), testing::AnyOf(128 + SIGTERM, 128 + SIGINT)) << process.Errors();
}

}  // namespace
}  // namespace lemo::train
