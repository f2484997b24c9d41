// lemo-train on several ranks under mpirun: one run whatever its shape, and what becomes of it when
// a rank dies, hangs, is asked to stop or is not the same as the others.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmath>
#include <fstream>

#include "absl/strings/numbers.h"
#include "tests/e2e/train/workspace.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;
using Clock = Process::Clock;

constexpr std::chrono::minutes kPatience{2};
// In which a gang must be gone after one of it died.
constexpr std::chrono::seconds kEnd{10};

json GangSpec(const std::string& out) {
  json spec = Workspace::Spec();
  spec["train"]["batch_sequences"] = 4;
  spec["train"]["steps"] = 6;
  spec["checkpoint"] = {{"every_steps", 2}, {"keep_last", 10}};
  spec["output"]["dir"] = out;
  spec["parallel"] = {{"timeout_seconds", 60}};
  return spec;
}

void MakeFull(json* spec, const std::string& shard) {
  (*spec)["tuner"] = {{"full", json::object()}};
  (*spec)["train"]["learning_rate"] = 1e-3;
  (*spec)["parallel"]["shard"] = shard;
}

// `env mpirun ... lemo-train run.json ...`, or lemo-train itself for one rank. Without a spec with
// `args` alone.
std::vector<std::string> Command(const Workspace& workspace, int ranks, const json& spec,
                                 const std::vector<std::string>& args = {}) {
  std::vector<std::string> command;
  if (ranks > 1) {
    command = {"mpirun",
               "--allow-run-as-root",
               "--oversubscribe",
               "--bind-to",
               "none",
               "--np",
               std::to_string(ranks),
               "--mca",
               "plm",
               "isolated",
               "--mca",
               "btl",
               "self,vader",
               "-x",
               "OMP_NUM_THREADS=1"};
  }
  command.push_back(Workspace::Program());
  const std::vector<std::string> own = spec.is_null() ? args : workspace.Arguments(spec, args);
  command.insert(command.end(), own.begin(), own.end());
  return command;
}

// Whether these processes, which need not be our children, end before the deadline.
bool AreGone(const std::vector<pid_t>& processes, Clock::time_point deadline) {
  for (const pid_t pid : processes) {
    const int fd = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
    if (fd < 0) continue;
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
    pollfd waiting = {.fd = fd, .events = POLLIN, .revents = 0};
    const bool gone = ::poll(&waiting, 1, std::max<int>(0, static_cast<int>(left.count()))) == 1;
    ::close(fd);
    if (!gone) return false;
  }
  return true;
}

// A gang that is looked at while it runs.
class GangProcess {
 public:
  GangProcess(const Workspace& workspace, const std::vector<std::string>& command)
      : process_("/usr/bin/env", command, {.directory = workspace.path()}) {}

  // Reads events until one for which `wanted` holds; an empty object at the end of the output.
  template <typename Wanted>
  json Until(const Wanted& wanted) {
    while (const auto line = process_.NextLine(Clock::now() + kPatience)) {
      if (!json::accept(*line)) continue;  // mpirun's own words
      events_.push_back(json::parse(*line));
      if (wanted(events_.back())) return events_.back();
    }
    return json::object();
  }
  int End() {
    Until([](const json&) { return false; });
    return process_.Wait();
  }
  // The process of a rank.
  pid_t Rank(int rank) const {
    for (const pid_t pid : Ranks()) {
      std::ifstream file("/proc/" + std::to_string(pid) + "/environ");
      const std::string environment(std::istreambuf_iterator<char>(file), {});
      const std::string wanted = "OMPI_COMM_WORLD_RANK=" + std::to_string(rank);
      if (environment.find(wanted + '\0') != std::string::npos) return pid;
    }
    return -1;
  }
  // Those that mpirun has started and that have not ended.
  std::vector<pid_t> Ranks() const {
    std::vector<pid_t> ranks;
    std::ifstream children("/proc/" + std::to_string(process_.pid()) + "/task/" +
                           std::to_string(process_.pid()) + "/children");
    for (pid_t pid; children >> pid;) ranks.push_back(pid);
    return ranks;
  }
  Process& process() { return process_; }
  std::map<int, double> Losses() const {
    std::map<int, double> losses;
    for (const json& event : events_) {
      if (event.at("type") == "step") losses[event.at("step")] = event.at("loss");
    }
    return losses;
  }
  const std::vector<json>& events() const { return events_; }
  json Last(const std::string& type) const {
    for (auto at = events_.rbegin(); at != events_.rend(); ++at) {
      if (at->at("type") == type) return *at;
    }
    return json::object();
  }

 private:
  Process process_;
  std::vector<json> events_;
};

std::map<int, double> TrainWhole(const Workspace& workspace, int ranks, const json& spec,
                                 const std::vector<std::string>& args = {}) {
  GangProcess gang(workspace, Command(workspace, ranks, spec, args));
  EXPECT_EQ(gang.End(), 0) << gang.process().Errors();
  EXPECT_EQ(gang.Last("result").value("steps", 0), 6);
  return gang.Losses();
}

void ExpectNear(const std::map<int, double>& losses, const std::map<int, double>& wanted,
                double bound) {
  for (const auto& [step, loss] : losses) {
    ASSERT_TRUE(wanted.contains(step));
    EXPECT_NEAR(loss, wanted.at(step), bound * wanted.at(step)) << "step " << step;
  }
}

std::string Adapter(const Workspace& workspace, const std::string& out) {
  return ReadAll(workspace.path() / out / "adapter" / "adapter_model.safetensors");
}

bool IsSaved(const json& event, int step) {
  return event.at("type") == "checkpoint" && event.at("step") == step;
}

TEST(Gang, TrainsAsOneRankDoesWhateverItsSize) {
  const Workspace workspace;
  for (const std::string shard : {"", "optimizer", "gradients", "parameters"}) {
    SCOPED_TRACE(shard);
    json spec = GangSpec("one" + shard);
    if (!shard.empty()) MakeFull(&spec, shard);
    const std::map<int, double> one = TrainWhole(workspace, 1, spec);
    ASSERT_EQ(one.size(), 6u);
    for (const int ranks : {2, 4}) {
      spec["output"]["dir"] = std::to_string(ranks) + shard;
      const std::map<int, double> losses = TrainWhole(workspace, ranks, spec);
      EXPECT_EQ(losses.size(), 6u);
      ExpectNear(losses, one, 1e-6);
    }
  }
}

// What two ranks publish is what one does, and a model that they cannot share is refused.
TEST(Gang, SharesTheModel) {
  const Workspace workspace;
  for (const std::string shard : {"", "parameters"}) {
    json spec = GangSpec("one" + shard);
    spec["tuner"]["lora"]["targets"] = {"all-linear"};
    spec["tuner"]["lora"]["dropout"] = 0.1;
    spec["output"]["merge"] = true;
    if (!shard.empty()) {
      MakeFull(&spec, shard);
      spec["output"].erase("merge");
    }
    const std::map<int, double> one = TrainWhole(workspace, 1, spec);
    for (const auto& [ranks, tensor] : {std::pair{2, 2}, {4, 4}, {4, 2}}) {
      const std::string out = std::to_string(ranks) + "by" + std::to_string(tensor) + shard;
      SCOPED_TRACE(out);
      spec["output"]["dir"] = out;
      spec["parallel"]["tensor"] = tensor;
      const std::map<int, double> losses = TrainWhole(workspace, ranks, spec);
      EXPECT_EQ(losses.size(), 6u);
      ExpectNear(losses, one, 1e-6);
      // Headers alone are the same bytes; of the values the run itself made sure.
      const std::string file = "model/model.safetensors";
      EXPECT_EQ(fs::file_size(workspace.path() / out / file),
                fs::file_size(workspace.path() / ("one" + shard) / file));
    }
  }
  json spec = GangSpec("out");
  spec["parallel"]["tensor"] = 3;
  GangProcess gang(workspace, Command(workspace, 3, spec));
  EXPECT_EQ(gang.End(), 2);
  EXPECT_THAT(gang.Last("error").value("message", ""),
              HasSubstr("parallel.tensor: 3 ranks cannot share 8 heads, 4 key/value heads and an "
                        "MLP of width 172 evenly; sizes that can: 1, 2, 4"));
}

// Ranks have different documents, and so need different bytes, but must compute alike.
TEST(Gang, KeepsABudgetTogether) {
  const Workspace workspace;
  for (const auto& [tensor, shard] : {std::pair{1, ""}, {2, ""}, {1, "gradients"}}) {
    SCOPED_TRACE(shard);
    json spec = GangSpec("free");
    spec["data"]["max_length"] = 256;
    spec["train"]["micro_batch_tokens"] = 512;
    spec["train"]["batch_sequences"] = 5;
    spec["memory"]["policy"] = "all";
    if (*shard != '\0') MakeFull(&spec, shard);
    spec["parallel"]["tensor"] = tensor;
    const std::string name = std::to_string(tensor) + shard;
    spec["output"]["dir"] = "free" + name;
    const std::map<int, double> free = TrainWhole(workspace, 2, spec);
    spec["memory"]["budget_bytes"] = 1;
    spec["output"]["dir"] = "refused" + name;
    std::string message;
    {
      GangProcess gang(workspace, Command(workspace, 2, spec));
      message =
          gang.Until([](const json& event) { return event.at("type") == "error"; }).at("message");
      EXPECT_NE(gang.End(), 0);
    }
    const size_t at = message.find("A budget of ");
    ASSERT_NE(at, std::string::npos) << message;
    // What divides its gradients has more of them for a moment than was measured before it.
    const int64_t budget = std::stoll(message.substr(at + 12)) + (64 << 10);
    spec["memory"]["budget_bytes"] = budget;
    spec["output"]["dir"] = "kept" + name;
    GangProcess gang(workspace, Command(workspace, 2, spec));
    EXPECT_EQ(gang.End(), 0);
    EXPECT_EQ(gang.Losses().size(), 6u);
    ExpectNear(gang.Losses(), free, 1e-6);
    EXPECT_THAT(
        ReadAll(workspace.path() / spec["output"]["dir"].get<std::string>() / "report.json"),
        testing::AllOf(HasSubstr("\"action\": \"storage\""), HasSubstr("\"rehearsals\": [")));
  }
}

// From a checkpoint in the midst, written by so many ranks, on with another number.
TEST(Gang, GoesOnInAnotherShape) {
  const Workspace workspace;
  struct Change {
    int before, after;
    std::string shard_before, shard_after;
    int tensor_before = 1, tensor_after = 1;
  };
  for (const Change& c :
       {Change{2, 1, "", ""}, Change{1, 2, "", ""}, Change{2, 4, "", ""}, Change{2, 2, "", ""},
        Change{2, 4, "parameters", "optimizer"}, Change{4, 1, "optimizer", "none"},
        Change{1, 2, "none", "parameters"}, Change{2, 2, "gradients", "gradients"},
        Change{2, 1, "", "", 2, 1}, Change{1, 4, "", "", 1, 4}, Change{2, 2, "", "", 2, 2},
        Change{4, 2, "parameters", "optimizer", 2, 1}}) {
    const std::string name = std::to_string(c.before) + c.shard_before + "-" +
                             std::to_string(c.after) + c.shard_after + "-" +
                             std::to_string(c.tensor_before) + std::to_string(c.tensor_after);
    SCOPED_TRACE(name);
    json spec = GangSpec("whole-" + name);
    if (!c.shard_before.empty()) MakeFull(&spec, c.shard_before);
    spec["parallel"]["tensor"] = c.tensor_before;
    const std::map<int, double> whole = TrainWhole(workspace, c.before, spec);
    spec["output"]["dir"] = name;
    {
      GangProcess gang(workspace, Command(workspace, c.before, spec));
      ASSERT_FALSE(gang.Until([](const json& event) { return IsSaved(event, 2); }).empty());
      const std::vector<pid_t> ranks = gang.Ranks();
      gang.process().Signal(SIGKILL);
      gang.End();
      ASSERT_TRUE(AreGone(ranks, Clock::now() + kEnd)) << "ranks outlive mpirun";
    }
    // Every rank has written a part of it.
    for (int rank = 1; c.before > 1 && rank <= c.before; ++rank) {
      const std::string file = "optimizer-0000" + std::to_string(rank) + "-of-0000" +
                               std::to_string(c.before) + ".safetensors";
      EXPECT_TRUE(fs::exists(workspace.path() / name / "checkpoints/step-00000002" / file)) << file;
    }
    if (!c.shard_after.empty()) spec["parallel"]["shard"] = c.shard_after;
    spec["parallel"]["tensor"] = c.tensor_after;
    GangProcess gang(workspace, Command(workspace, c.after, spec, {"--resume", "auto"}));
    ASSERT_EQ(gang.End(), 0) << gang.process().Errors();
    EXPECT_GE(gang.events().size(), 1u);
    EXPECT_FALSE(gang.Losses().contains(2)) << "began anew";
    // The same shape gives the same bits.
    const bool same =
        c.before == c.after && c.shard_before == c.shard_after && c.tensor_before == c.tensor_after;
    ExpectNear(gang.Losses(), whole, same ? 0 : 1e-6);
  }
}

// Any rank, in any phase; what is left is resumed and gives the same losses.
TEST(Gang, EndsWithAnyRankAndRecovers) {
  const Workspace workspace;
  const std::map<int, double> whole = TrainWhole(workspace, 2, GangSpec("whole"));
  const auto phase = [](const char* name) {
    return [name](const json& event) {
      return event.at("type") == "phase" && event.at("name") == name;
    };
  };
  const std::pair<const char*, std::function<bool(const json&)>> moments[] = {
      {"first-collective", phase("validate")},
      {"load", phase("load")},
      {"first-step", phase("train")},
      {"step", [](const json& event) { return event.at("type") == "step"; }},
      {"saved", [](const json& event) { return IsSaved(event, 2); }},
      {"publish", phase("publish")},
  };
  for (const auto& [name, moment] : moments) {
    for (const int rank : {0, 1}) {
      const std::string out = std::string(name) + std::to_string(rank);
      SCOPED_TRACE(out);
      {
        GangProcess gang(workspace, Command(workspace, 2, GangSpec(out)));
        ASSERT_FALSE(gang.Until(moment).empty());
        const std::vector<pid_t> ranks = gang.Ranks();
        const pid_t victim = gang.Rank(rank);
        ASSERT_GT(victim, 0);
        const auto killed = Clock::now();
        ::kill(victim, SIGKILL);
        EXPECT_NE(gang.End(), 0);
        EXPECT_LT(Clock::now() - killed, kEnd);
        EXPECT_TRUE(AreGone(ranks, killed + kEnd)) << "a rank is left";
      }
      ExpectNear(TrainWhole(workspace, 2, GangSpec(out), {"--resume", "auto"}), whole, 0);
      EXPECT_EQ(Adapter(workspace, out), Adapter(workspace, "whole"));
    }
  }
}

// Within a step no event tells where a rank is, but its operations do (die_at.cc). A model of five
// layers that shards its parameters has twelve buckets, two a layer and the ends, summed in each of
// two micro-batches a step; otherwise there is one bucket, summed once a step.
TEST(Gang, EndsAnywhereInAStepAndRecovers) {
  const Workspace workspace;
  struct Moment {
    const char *name, *shard, *script;
  };
  for (const Moment& moment : {
           Moment{"backward", "parameters", "MPI_Ireduce_scatter:54"},
           {"fetching-values", "parameters", "MPI_Ireduce_scatter:54 MPI_Iallgatherv:1"},
           {"last-bucket", "optimizer", "MPI_Ireduce_scatter:3"},
           {"gradient-norm", "optimizer", "MPI_Ireduce_scatter:3 MPI_Iallreduce:1"},
           {"updated", "optimizer", "MPI_Ireduce_scatter:3 MPI_Iallgatherv:1"},
           {"snapshot", "optimizer", "MPI_Ireduce_scatter:4 MPI_Iallgatherv:4"},
           {"writing", "optimizer", "MPI_Ireduce_scatter:4 fsync:1"},
       }) {
    json spec = GangSpec(std::string("whole-") + moment.shard);
    MakeFull(&spec, moment.shard);
    if (!fs::exists(workspace.path() / spec["output"]["dir"].get<std::string>())) {
      TrainWhole(workspace, 2, spec);
    }
    const std::string model = "model/model.safetensors";
    const std::string whole =
        ReadAll(workspace.path() / spec["output"]["dir"].get<std::string>() / model);
    for (const std::string rank : {"0", "1"}) {
      const std::string out = moment.name + rank;
      SCOPED_TRACE(out);
      spec["output"]["dir"] = out;
      std::vector<std::string> command = Command(workspace, 2, spec);
      const std::string preload = "LD_PRELOAD=" LEMO_DIE_AT_LIBRARY;
      const std::string script = "LEMO_DIE_AT=" + rank + " " + moment.script;
      command.insert(command.begin() + 1, {"-x", preload, "-x", script});
      {
        GangProcess gang(workspace, command);
        ASSERT_FALSE(
            gang.Until([](const json& event) { return event.at("type") == "step"; }).empty())
            << gang.process().Errors();
        const std::vector<pid_t> ranks = gang.Ranks();
        EXPECT_NE(gang.End(), 0);
        EXPECT_TRUE(AreGone(ranks, Clock::now() + kEnd)) << "a rank is left";
        EXPECT_GE(gang.Losses().size(), 2u);
        EXPECT_LT(gang.Losses().size(), 6u);
        EXPECT_TRUE(gang.Last("result").empty());
      }
      TrainWhole(workspace, 2, spec, {"--resume", "auto"});
      EXPECT_EQ(ReadAll(workspace.path() / out / model), whole);
    }
  }
}

TEST(Gang, NamesTheRankThatIsLate) {
  const Workspace workspace;
  json spec = GangSpec("out");
  spec["parallel"]["timeout_seconds"] = 2;
  spec["train"]["steps"] = 10000;
  GangProcess gang(workspace, Command(workspace, 2, spec));
  ASSERT_FALSE(gang.Until([](const json& event) { return event.at("type") == "step"; }).empty());
  const std::vector<pid_t> ranks = gang.Ranks();
  const auto stopped = Clock::now();
  ::kill(gang.Rank(1), SIGSTOP);
  EXPECT_EQ(gang.End(), 4);
  EXPECT_LT(Clock::now() - stopped, std::chrono::seconds(2) + kEnd);
  EXPECT_THAT(gang.Last("error").value("message", ""),
              testing::AllOf(HasSubstr("rank 0 waited 2 s at step "), HasSubstr("late: rank 1")));
  EXPECT_TRUE(AreGone(ranks, Clock::now() + kEnd)) << "a rank is left";
}

TEST(Gang, StopsTogetherWhenOneRankIsAsked) {
  const Workspace workspace;
  const std::map<int, double> whole = TrainWhole(workspace, 2, GangSpec("whole"));
  {
    json spec = GangSpec("out");
    spec.erase("checkpoint");
    GangProcess gang(workspace, Command(workspace, 2, spec));
    ASSERT_FALSE(gang.Until([](const json& event) { return event.at("type") == "step"; }).empty());
    ::kill(gang.Rank(1), SIGTERM);
    EXPECT_EQ(gang.End(), 128 + SIGTERM);
    EXPECT_TRUE(gang.Last("result").value("interrupted", false));
    EXPECT_EQ(gang.Last("checkpoint").value("reason", ""), "signal");
  }
  ExpectNear(TrainWhole(workspace, 2, GangSpec("out"), {"--resume", "auto"}), whole, 0);
  EXPECT_EQ(Adapter(workspace, "out"), Adapter(workspace, "whole"));
}

TEST(Gang, RefusesRanksThatRunSomethingElse) {
  const Workspace workspace;
  std::vector<std::string> command = Command(workspace, 2, GangSpec("out"));
  command[6] = "1";
  for (const char* word : {":", "--np", "1", "-x", "OMP_NUM_THREADS=1"}) command.push_back(word);
  command.push_back(Workspace::Program());
  for (const std::string& word :
       workspace.Arguments(GangSpec("out"), {"--set", "train.learning_rate=0.5"})) {
    command.push_back(word);
  }
  GangProcess gang(workspace, command);
  EXPECT_EQ(gang.End(), 2);
  EXPECT_THAT(gang.Last("error").value("message", ""),
              HasSubstr("train.learning_rate: rank 1 has 0.5, rank 0 has "));
  EXPECT_FALSE(fs::exists(workspace.path() / "out/checkpoints"));
}

// Of ranks that compute at once, and of the sums between them; beside what one alone does.
TEST(Gang, CalibratesItsLink) {
  const Workspace workspace;
  const auto rates = [&workspace] {
    return json::parse(ReadAll(workspace.path() / "rates.json")).at("rates");
  };
  const std::vector<std::string> args = {"calibrate", "--device", "cpu",       "--seconds",
                                         "0",         "--rates",  "rates.json"};
  for (const int ranks : {1, 2, 2}) {
    GangProcess gang(workspace, Command(workspace, ranks, json(), args));
    ASSERT_EQ(gang.End(), 0) << gang.process().Errors();
  }
  ASSERT_EQ(rates().size(), 2u);
  EXPECT_FALSE(rates()[0].at("calibration").contains("links"));
  EXPECT_EQ(rates()[1].at("ranks"), 2);
  const json calibration = rates()[1].at("calibration");
  EXPECT_EQ(calibration.at("operators").size(),
            rates()[0].at("calibration").at("operators").size());
  ASSERT_EQ(calibration.at("links").size(), 1u);
  const json& link = calibration.at("links")[0];
  EXPECT_EQ(link.at("ranks"), 2);
  EXPECT_GT(link.at("latency_seconds").get<double>(), 0);
  EXPECT_GT(link.at("bytes_per_second").get<double>(), 0);
}

TEST(Gang, RefusesGroupsThatDoNotMultiplyToItsRanks) {
  const Workspace workspace;
  json spec = GangSpec("out");
  spec["parallel"]["data"] = 3;
  for (const int ranks : {1, 2}) {
    GangProcess gang(workspace, Command(workspace, ranks, spec));
    EXPECT_EQ(gang.End(), 2);
    EXPECT_THAT(gang.Last("error").value("message", ""), HasSubstr("parallel.data: 3 groups"));
  }
}

}  // namespace
}  // namespace lemo::train
