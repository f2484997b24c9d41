// Jobs that share a device: different adapters on one base, which is there once; and a job that
// makes room for a neighbour while it runs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "common/files.h"
#include "common/format.h"
#include "tests/e2e/service/service_fixture.h"
#include "tests/e2e/train/model_writer.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;
using lemo::v1::Job;
using Clock = std::chrono::steady_clock;

constexpr const char* kAdapter = "adapter/adapter_model.safetensors";
constexpr auto kPatience = std::chrono::minutes(2);
constexpr auto kLookAgain = std::chrono::milliseconds(10);

// The rank of a job on this machine: the process whose command line has the job's directory.
pid_t RankOf(const std::string& job, const fs::path& agent) {
  const std::string directory = (agent / job).string() + "/";
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const std::string command = train::ReadAll(entry.path() / "cmdline");
    if (command.rfind(train::Workspace::Program(), 0) == 0 &&
        command.find(directory) != std::string::npos) {
      return std::stoi(name);
    }
  }
  return 0;
}

struct Mapped {
  int64_t resident = 0;      // bytes of the process
  int64_t proportional = 0;  // its share of those that others have too
};

// Of the process's mappings of files below `directory`, by the kernel's word.
Mapped MappedFrom(pid_t pid, const fs::path& directory) {
  std::ifstream smaps("/proc/" + std::to_string(pid) + "/smaps");
  Mapped mapped;
  bool counts = false;
  for (std::string line; std::getline(smaps, line);) {
    const size_t colon = line.find(": ");
    if (colon == std::string::npos || line.find('-') < line.find(' ')) {
      counts = line.find(directory.string() + "/") != std::string::npos;
      continue;
    }
    if (!counts) continue;
    std::istringstream words(line);
    std::string name;
    int64_t kib = 0;
    words >> name >> kib;
    if (name == "Rss:") mapped.resident += kib << 10;
    if (name == "Pss:") mapped.proportional += kib << 10;
  }
  return mapped;
}

// Holds processes still; lets all of them go on at the end.
class Held {
 public:
  ~Held() { Release(); }
  void Hold(pid_t pid) {
    ASSERT_EQ(::kill(pid, SIGSTOP), 0);
    pids_.push_back(pid);
  }
  void Release() {
    for (const pid_t pid : pids_) ::kill(pid, SIGCONT);
    pids_.clear();
  }

 private:
  std::vector<pid_t> pids_;
};

class Colocation : public testing::Test {
 protected:
  lemo::v1::Offer Smallest(const lemo::v1::JobSpec& spec) { return Offers(spec).front(); }
  std::vector<lemo::v1::Offer> Offers(const lemo::v1::JobSpec& spec) {
    lemo::v1::PlanJobRequest request;
    *request.mutable_spec() = spec;
    lemo::v1::PlanJobResponse response;
    const grpc::Status status = service_.jobs().PlanJob(Patiently().get(), request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_GT(response.plan().offers_size(), 0);
    std::vector<lemo::v1::Offer> offers(response.plan().offers().begin(),
                                        response.plan().offers().end());
    if (offers.empty()) offers.emplace_back();
    return offers;
  }
  static std::map<int, double> Losses(const std::vector<lemo::v1::JobEvent>& events) {
    std::map<int, double> losses;
    for (const lemo::v1::JobEvent& event : events) {
      if (event.run().has_step()) losses[event.run().step().step()] = event.run().step().loss();
    }
    return losses;
  }
  // Files of weights that are shared, in the agent's directory.
  std::vector<fs::path> BaseFiles() const {
    std::vector<fs::path> files;
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(service_.AgentDir("a") / "bases", ignored)) {
      if (entry.path().extension() == ".shared") files.push_back(entry.path());
    }
    return files;
  }

  Service service_;
};

// Four tenants of different rank, targets and kept rows on one device and one base. Its memory is
// that of the base and of what each has beside it, to the byte: they would not fit otherwise.
TEST_F(Colocation, FourAdaptersHaveTheirBaseOnce) {
  const fs::path model = service_.path() / "base";
  train::WriteBfloat16Model(model, {{"hidden_size", 256},
                                    {"head_dim", 32},
                                    {"num_hidden_layers", 8},
                                    {"intermediate_size", 688}});
  service_.PutInputs(model.string());
  std::vector<lemo::v1::JobSpec> specs;
  const auto tenant = [&](int rank, const std::vector<std::string>& targets,
                          const std::string& policy, double keep) {
    lemo::v1::JobSpec& spec = specs.emplace_back(service_.Spec());
    spec.mutable_plan()->set_prefer("smallest");
    lemo::v1::RunSpec& run = *spec.mutable_run();
    run.mutable_train()->set_batch_sequences(1);
    run.mutable_train()->set_steps(30);
    lemo::v1::LoraSpec& lora = *run.mutable_tuner()->mutable_lora();
    lora.set_rank(rank);
    lora.clear_targets();
    for (const std::string& target : targets) lora.add_targets(target);
    if (policy.empty()) return;
    run.mutable_tokens()->set_policy(policy);
    run.mutable_tokens()->add_keep(keep);
    run.mutable_tokens()->set_block(8);
  };
  tenant(8, {"q_proj", "v_proj"}, "", 1);
  tenant(4, {"all-linear"}, "", 1);
  tenant(16, {"o_proj"}, "random", 0.5);
  tenant(2, {"gate_proj", "down_proj"}, "recency", 0.75);

  int64_t base_bytes = 0, memory = 0;
  for (const lemo::v1::JobSpec& spec : specs) {
    const lemo::v1::Offer offer = Smallest(spec);
    if (base_bytes == 0) memory = base_bytes = offer.high().weights();
    EXPECT_EQ(offer.high().weights(), base_bytes);
    memory += offer.high().total() - base_bytes;
  }
  service_.StartAgent("a", {"--cpu-devices", "1", "--memory", std::to_string(memory)});

  // Each is held still in its first steps, until all are there.
  Held held;
  std::vector<std::string> names;
  std::vector<pid_t> ranks;
  for (const lemo::v1::JobSpec& spec : specs) {
    names.push_back(service_.Submit(spec).name());
    service_.Watch(names.back(), [](const auto& event) { return event.run().has_step(); });
    ranks.push_back(RankOf(names.back(), service_.AgentDir("a")));
    ASSERT_GT(ranks.back(), 0);
    held.Hold(ranks.back());
  }
  ASSERT_EQ(BaseFiles().size(), 1u);
  const auto file_bytes = static_cast<int64_t>(fs::file_size(BaseFiles()[0]));
  EXPECT_GE(file_bytes, base_bytes);
  EXPECT_LE(file_bytes, base_bytes + base_bytes / 100);
  int64_t proportional = 0;
  for (size_t i = 0; i < ranks.size(); ++i) {
    ASSERT_EQ(service_.Get(names[i]).state(), Job::RUNNING) << "all four run at a time";
    const Mapped mapped = MappedFrom(ranks[i], service_.AgentDir("a") / "bases");
    EXPECT_GT(mapped.resident, base_bytes * 9 / 10);
    proportional += mapped.proportional;
  }
  EXPECT_GT(proportional, base_bytes * 9 / 10);
  EXPECT_LE(proportional, file_bytes + ::sysconf(_SC_PAGE_SIZE));  // the last page is a whole one
  held.Release();

  int64_t together = base_bytes, apart = 0;
  for (const std::string& name : names) {
    SCOPED_TRACE(name);
    const auto events = service_.Watch(name, [](const auto&) { return false; });
    const Job job = service_.Get(name);
    ASSERT_EQ(job.state(), Job::SUCCEEDED) << job.ShortDebugString();
    EXPECT_EQ(job.attempt(), 1);
    EXPECT_EQ(job.contract().base_bytes(), base_bytes);
    for (const lemo::v1::JobEvent& event : events) {
      EXPECT_FALSE(event.run().has_amendment());
      if (!event.run().has_step()) continue;
      EXPECT_LE(event.run().step().peak_bytes(), job.contract().memory_bytes());
    }
    const lemo::v1::PeakBytes& peak = job.result().peak_bytes();
    EXPECT_EQ(peak.base(), base_bytes);
    EXPECT_EQ(peak.weights(), base_bytes);
    together += peak.total() - peak.base();
    // Alone, with weights of its own: the same to the last bit.
    const train::Outcome alone = service_.RunUndisturbed(job.spec());
    EXPECT_EQ(Losses(events), alone.Losses());
    EXPECT_EQ(service_.DownloadedSha256(name, kAdapter),
              Sha256Hex(train::ReadAll(service_.path() / "undisturbed" / kAdapter)));
    apart += alone.Last("result").at("peak_bytes").at("total").get<int64_t>();
  }
  EXPECT_LE(static_cast<double>(together), 0.4 * static_cast<double>(apart))
      << HumanBytes(together) << " of " << HumanBytes(apart);
  EXPECT_LE(together, memory);
  std::cout << "four jobs on one base: " << HumanBytes(together) << ", apart " << HumanBytes(apart)
            << "; of the base " << HumanBytes(proportional) << " in memory\n";

  // Nobody needs it any more.
  const auto deadline = Clock::now() + kPatience;
  while (!BaseFiles().empty() && Clock::now() < deadline) std::this_thread::sleep_for(kLookAgain);
  EXPECT_TRUE(BaseFiles().empty());
}

// A job that allows it gives up what a neighbour lacks, has it back when that has gone, and loses
// nothing by it.
TEST_F(Colocation, AnElasticJobMakesRoomAndHasItBack) {
  service_.PutInputs();
  lemo::v1::JobSpec elastic = service_.Spec();
  elastic.mutable_plan()->set_prefer("fastest");
  elastic.mutable_plan()->set_elastic(true);
  elastic.mutable_run()->mutable_train()->set_schedule("constant");
  elastic.mutable_run()->mutable_train()->set_steps(1'000'000);
  lemo::v1::JobSpec small = service_.Spec();
  small.mutable_plan()->set_prefer("smallest");

  const std::vector<lemo::v1::Offer> offers = Offers(elastic);
  const int64_t most = offers.back().high().total(), least = offers.front().high().total();
  ASSERT_GT(most, least);
  const lemo::v1::Offer beside = Smallest(small);
  const int64_t missing = (most - least) / 2;
  const int64_t memory = most + beside.high().total() - beside.high().weights() - missing;
  elastic.mutable_plan()->set_offer(offers.back().id());
  elastic.mutable_plan()->clear_prefer();
  service_.StartAgent("a", {"--cpu-devices", "1", "--memory", std::to_string(memory)});

  const std::string one = service_.Submit(elastic).name();
  service_.Watch(one, [](const auto& event) { return event.run().has_step(); });
  const std::string two = service_.Submit(small).name();
  const auto kind = [](lemo::v1::ContractChange::Kind kind) {
    return [kind](const lemo::v1::JobEvent& event) { return event.contract().kind() == kind; };
  };
  const auto cut = service_.Watch(one, kind(lemo::v1::ContractChange::CUT));
  EXPECT_EQ(cut.back().contract().for_job(), two);
  EXPECT_EQ(cut.back().contract().to_bytes(), most - missing);
  service_.Watch(one, kind(lemo::v1::ContractChange::WITHIN));
  const Job neighbour = service_.Finish(two);
  ASSERT_EQ(neighbour.state(), Job::SUCCEEDED) << neighbour.ShortDebugString();
  const auto raised = service_.Watch(one, kind(lemo::v1::ContractChange::RAISED));
  EXPECT_EQ(raised.back().contract().to_bytes(), most);
  // Two more steps, the last with all of it again.
  const auto events = service_.Watch(one, [&](const lemo::v1::JobEvent& event) {
    return event.sequence() > raised.back().sequence() &&
           event.run().step().memory().budget_bytes() == most;
  });
  EXPECT_EQ(service_.Get(one).attempt(), 1);
  EXPECT_EQ(service_.Get(one).allotment().memory_bytes(), most);

  // What it was held to, step by step.
  bool within = false;
  int amendments = 0;
  for (const lemo::v1::JobEvent& event : events) {
    within |= event.contract().kind() == lemo::v1::ContractChange::WITHIN;
    if (event.contract().kind() == lemo::v1::ContractChange::RAISED) within = false;
    amendments += event.run().has_amendment() ? 1 : 0;
    if (!event.run().has_step()) continue;
    EXPECT_LE(event.run().step().memory().peak_bytes(), within ? most - missing : most);
  }
  EXPECT_GT(amendments, 0) << "it computed in another way";
  // And its losses are those of a run that had all of it.
  const std::map<int, double> losses = Losses(events);
  lemo::v1::JobSpec same = service_.Get(one).spec();
  constexpr int kCompared = 400;
  same.mutable_run()->mutable_train()->set_steps(
      std::min(kCompared, static_cast<int>(losses.size())));
  const std::map<int, double> alone = service_.RunUndisturbed(same).Losses();
  ASSERT_GT(alone.size(), 2u);
  for (const auto& [step, loss] : alone) {
    EXPECT_NEAR(losses.at(step), loss, 1e-6 * std::abs(loss)) << step;
  }
  EXPECT_EQ(service_.DownloadedSha256(two, kAdapter), service_.UndisturbedSha256(neighbour.spec()));

  lemo::v1::CancelJobRequest request;
  request.set_name(one);
  Job ignored;
  EXPECT_TRUE(service_.jobs().CancelJob(Patiently().get(), request, &ignored).ok());
  EXPECT_EQ(service_.Finish(one).state(), Job::CANCELLED);
}

}  // namespace
}  // namespace lemo::coordinator
