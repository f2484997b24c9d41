// A budget under a limit that the kernel keeps: what the run may have at most, and a little above
// what its budget ever is. It is never touched, however the budget is cut and raised.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <random>

#include "common/files.h"
#include "tests/e2e/train/model_writer.h"
#include "tests/e2e/train/workspace.h"

namespace lemo::train {
namespace {

using nlohmann::json;
using Clock = Process::Clock;

constexpr std::chrono::minutes kPatience{2};
// For what is no tensor and grows a little: events, batches, what the C library keeps.
constexpr int64_t kRoom = 32 << 20;

// What the process may write to, as the limit counts it.
int64_t DataBytes(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("VmData:")) return std::stoll(line.substr(7)) << 10;
  }
  return 0;
}

struct Squeezed {
  int exit_code = 0;
  std::string text;
  std::map<int, double> losses;
  std::vector<json> amendments;
  int64_t data_bytes = 0;  // the most seen between steps
};

class KernelLimit : public ::testing::Test {
 protected:
  // Layers keep some hundred MiB of a pass of so many rows, and the model weighs little.
  json Spec(const std::string& out) const {
    json spec = Workspace::Spec();
    spec["model"]["path"] = (workspace_.path() / "model").string();
    spec["data"]["max_length"] = 512;
    spec["train"] = {{"steps", 6}, {"batch_sequences", 4}, {"micro_batch_tokens", 2048}};
    spec["memory"] = {{"policy", "all"}};
    spec["output"]["dir"] = out;
    return spec;
  }

  // `after_step` gives the next budget in bytes, 0 for none.
  Squeezed Run(const json& spec, std::optional<uint64_t> limit,
               const std::function<int64_t()>& after_step = nullptr) const {
    Squeezed run;
    Process process(Workspace::Program(), workspace_.Arguments(spec),
                    {.directory = workspace_.path(), .data_limit = limit});
    while (const auto line = process.NextLine(Clock::now() + kPatience)) {
      run.text += *line + "\n";
      const json event = json::parse(*line);
      if (event.at("type") == "amendment") run.amendments.push_back(event);
      if (event.at("type") != "step") continue;
      run.losses[event.at("step")] = event.at("loss");
      run.data_bytes = std::max(run.data_bytes, DataBytes(process.pid()));
      if (!after_step) continue;
      const std::filesystem::path file =
          workspace_.path() / spec.at("output").at("dir").get<std::string>() / "budget";
      EXPECT_TRUE(WriteFileAtomic(file, std::to_string(after_step()) + "\n").ok());
    }
    run.exit_code = process.Wait();
    run.text += process.Errors();
    return run;
  }

  void SetUp() override {
    const std::vector<std::string> words = {"the", "girl", "had", "a", "big", "red", "ball", "and"};
    std::mt19937 random(5);
    std::string rows;
    for (int row = 0; row < 24; ++row) {
      std::string text;
      for (int i = 0; i < 200; ++i) text += words[random() % words.size()] + " ";
      rows += json{{"text", text}}.dump() + "\n";
    }
    workspace_.Write("train.jsonl", rows);
    WriteBfloat16Model(workspace_.path() / "model", {{"hidden_size", 128},
                                                     {"intermediate_size", 512},
                                                     {"num_hidden_layers", 10},
                                                     {"num_attention_heads", 8},
                                                     {"num_key_value_heads", 4},
                                                     {"head_dim", 16},
                                                     {"max_position_embeddings", 512}});
  }

  Workspace workspace_;
};

TEST_F(KernelLimit, IsNeverTouchedByARunWhoseBudgetIsCut) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's shadow counts as memory that is written to";
#endif
  const Outcome free = workspace_.Run(Spec("free"));
  ASSERT_EQ(free.exit_code, 0) << free.out << free.err;
  const auto peak = free.Last("result").at("peak_bytes").at("total").get<int64_t>();
  json spec = Spec("refused");
  spec["memory"]["budget_bytes"] = 1;
  const std::string message = workspace_.Run(spec).Last("error").at("message");
  const size_t at = message.find("A budget of ");
  ASSERT_NE(at, std::string::npos) << message;
  const int64_t least = std::stoll(message.substr(at + 12));
  const int64_t most = least + (peak - least) / 4;

  // What the process has beside its budget, on this machine and with so many threads.
  spec = Spec("measured");
  spec["memory"]["budget_bytes"] = most;
  const Squeezed measured = Run(spec, std::nullopt);
  ASSERT_EQ(measured.exit_code, 0) << measured.text;
  const int64_t limit = measured.data_bytes + kRoom;
  // It is a real one: who has no budget does not get by.
  ASSERT_GT(peak, most + 2 * kRoom);
  const Squeezed unbudgeted = Run(Spec("unbudgeted"), limit);
  EXPECT_EQ(unbudgeted.exit_code, 3) << unbudgeted.text;

  for (unsigned seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    spec["output"]["dir"] = "squeezed" + std::to_string(seed);
    const Squeezed run = Run(
        spec, limit, [&] { return least + static_cast<int64_t>(random() % (most - least + 1)); });
    ASSERT_EQ(run.exit_code, 0) << run.text;
    EXPECT_LT(run.data_bytes, limit);
    EXPECT_FALSE(run.amendments.empty());
    for (const json& amendment : run.amendments) EXPECT_NE(amendment.at("reason"), "allocator");
    const std::map<int, double> losses = free.Losses();
    ASSERT_EQ(run.losses.size(), losses.size());
    for (const auto& [step, loss] : losses) {
      EXPECT_NEAR(run.losses.at(step), loss, 1e-6 * std::abs(loss)) << step;
    }
  }
}

}  // namespace
}  // namespace lemo::train
