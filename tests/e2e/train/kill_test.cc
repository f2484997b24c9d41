// SIGKILL at a hundred random instants of real runs: whatever is resumed gives the unbroken run's
// losses and bytes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <random>

#include "tests/e2e/train/workspace.h"

namespace lemo::train {
namespace {

using nlohmann::json;
using Clock = Process::Clock;

constexpr int kKills = 100;
constexpr unsigned kSeed = 20260117;
constexpr std::chrono::minutes kPatience{1};

json KillSpec(const std::string& out) {
  json spec = Workspace::Spec();
  spec["train"]["batch_sequences"] = 1;
  spec["tuner"]["lora"]["dropout"] = 0.1;
  spec["train"]["steps"] = 12;
  spec["checkpoint"] = {{"every_steps", 1}};
  spec["output"]["dir"] = out;
  return spec;
}

// What one run of a broken series must keep to.
class Watcher {
 public:
  explicit Watcher(const std::map<int, double>& unbroken) : unbroken_(unbroken) {}

  // The events of one life, in order.
  void See(const json& event, int life) {
    const std::string type = event.at("type");
    if (type == "step") {
      const int step = event.at("step");
      ASSERT_TRUE(unbroken_.contains(step));
      EXPECT_EQ(event.at("loss").get<double>(), unbroken_.at(step))
          << "life " << life << ", step " << step;
    } else if (type == "checkpoint" && event.at("reason") == "resumed") {
      EXPECT_GE(event.at("step").get<int>(), saved_) << "a whole checkpoint was lost";
      saved_ = std::max(saved_, event.at("step").get<int>());
      ++resumed_;
    } else if (type == "checkpoint") {
      saved_ = event.at("step");
    } else if (type == "warning" || type == "error") {
      ADD_FAILURE() << "life " << life << ": " << event.dump();
    }
  }
  int resumed() const { return resumed_; }

 private:
  const std::map<int, double>& unbroken_;
  int saved_ = 0;
  int resumed_ = 0;
};

TEST(Kill, AtAHundredInstantsAndResumed) {
  std::printf("seed %u\n", kSeed);
  const Workspace workspace;
  const Outcome whole = workspace.Run(KillSpec("whole"));
  ASSERT_EQ(whole.exit_code, 0) << whole.out << whole.err;
  const std::map<int, double> losses = whole.Losses();
  ASSERT_EQ(losses.size(), 12u);
  const std::string adapter = ReadAll(workspace.path() / "whole/adapter/adapter_model.safetensors");
  ASSERT_FALSE(adapter.empty());
  const double work_seconds = whole.events.back().at("unix_seconds").get<double>() -
                              whole.events.front().at("unix_seconds").get<double>();

  // The instants are spread over all of a run's work, from its first event to beyond its end.
  std::mt19937 random(kSeed);
  std::uniform_real_distribution<double> fraction(0, 1.05);
  int kills = 0, resumed = 0, series = 0;
  while (kills < kKills) {
    const std::string out = "broken" + std::to_string(series++);
    const std::vector<std::string> args = workspace.Arguments(KillSpec(out), {"--resume", "auto"});
    Watcher watcher(losses);
    bool finished = false;
    while (!finished) {
      Process process(Workspace::Program(), args, {.directory = workspace.path()});
      const auto first = process.NextLine(Clock::now() + kPatience);
      ASSERT_TRUE(first.has_value()) << process.Errors();
      // Killed often enough: the last series may end.
      const auto delay = kills < kKills
                             ? std::chrono::duration<double>(fraction(random) * work_seconds)
                             : std::chrono::duration<double>(kPatience);
      const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(delay);
      std::vector<std::string> lines = {*first};
      while (const auto line = process.NextLine(deadline)) lines.push_back(*line);
      process.Signal(SIGKILL);
      while (const auto line = process.NextLine(Clock::now() + kPatience)) lines.push_back(*line);
      const int status = process.Wait();
      for (const std::string& line : lines) {
        // The last line may be torn by the kill: NextLine gives whole ones only.
        watcher.See(json::parse(line), kills);
        if (testing::Test::HasFailure()) return;
      }
      finished = status == 0;
      if (!finished) {
        ASSERT_EQ(status, -SIGKILL) << lines.back() << process.Errors();
        ++kills;
      }
    }
    resumed += watcher.resumed();
    EXPECT_EQ(ReadAll(workspace.path() / out / "adapter/adapter_model.safetensors"), adapter)
        << out;
    const auto history = [&](const std::string& dir) {
      std::map<int, double> found;
      const json state = json::parse(ReadAll(workspace.path() / dir / "trainer_state.json"));
      for (const json& entry : state.at("log_history")) {
        if (entry.contains("loss")) found[entry.at("step")] = entry.at("loss");
      }
      return found;
    };
    EXPECT_EQ(history(out), losses) << "the report forgot what was before a kill";
  }
  std::printf("%d kills in %d runs, %d times resumed from a checkpoint\n", kills, series, resumed);
  EXPECT_GT(resumed, kKills / 4) << "hardly any kill fell behind the first checkpoint";
}

}  // namespace
}  // namespace lemo::train
