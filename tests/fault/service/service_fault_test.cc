// Jobs on real processes through faults drawn from a seed. What must hold afterwards: every
// acknowledged job has succeeded with the adapter of an undisturbed run, its history is whole, no
// job ran twice at a time, and no process or file is left.
//
// The everyday run is short. A long one:
//   LEMO_FAULTS=200 LEMO_FAULT_SEED=1 build/release/tests/fault/service/service_fault_test
// When it fails it prints the seed and the faults with their times, and keeps the workspace. The
// seed fixes which faults are drawn, not what they meet.
#include <gtest/gtest.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <memory>
#include <set>
#include <sstream>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "common/files.h"
#include "coordinator/runtime/janitor.h"
#include "tests/e2e/service/service_fixture.h"
#include "tests/fault/service/client.h"
#include "tests/fault/service/history.h"
#include "tests/fault/service/marked.h"
#include "tests/fault/service/mischief.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using lemo::v1::Job;

constexpr const char* kAdapter = "adapter/adapter_model.safetensors";
constexpr int kClients = 3;
constexpr unsigned kSpecs = 2;
// For what runs when the faults are over; above all for back-offs and ranks that start again.
constexpr std::chrono::seconds kToTheEnd{120};
// An agent looks for what it may sweep when it connects and then once a minute.
constexpr std::chrono::seconds kToBeSwept{75};

int FromEnvironment(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoi(text);
}

// A run without faults: what all others of the spec must come to.
struct Undisturbed {
  std::map<int, double> losses;
  std::string adapter;  // its SHA-256
};

bool Eventually(Clock::duration patience, const std::function<bool()>& holds) {
  const Clock::time_point deadline = Clock::now() + patience;
  while (!holds()) {
    if (Clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return true;
}

// Regular files below, relative; none when there is no such directory.
std::vector<std::string> FilesBelow(const fs::path& directory) {
  std::vector<std::string> files;
  std::error_code error;
  for (fs::recursive_directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    if (!entry->is_directory()) files.push_back(entry->path().lexically_relative(directory));
  }
  return files;
}

std::string Joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  return text;
}

class ServiceFaults : public testing::TestWithParam<unsigned> {
 protected:
  void SetUp() override {
    MarkThisProcess();
    guard_ = service_.workspace().path() / "guard";
    for (const char* folder : {"runs", "violations"}) fs::create_directories(guard_ / folder);
    ::setenv("LEMO_GUARD_DIR", guard_.c_str(), 1);
    ::setenv("LEMO_GUARD_TRAIN", train::Workspace::Program().c_str(), 1);
    // Agents with one device and with two give ranks different shares of the cores, and sums come
    // out differently then.
    ::setenv("OMP_NUM_THREADS", "1", 1);
    // The first coordinator has come before the mark.
    service_.KillCoordinator();
    service_.StartCoordinator();
    service_.PutInputs();
    for (unsigned i = 0; i < kSpecs; ++i) {
      lemo::v1::JobSpec spec = service_.Spec();
      spec.mutable_run()->mutable_train()->set_steps(50 + 20 * static_cast<int>(i));
      spec.mutable_run()->mutable_train()->set_seed(100 + i);
      spec.mutable_run()->mutable_checkpoint()->set_every_steps(10);
      spec.mutable_restart()->set_limit(1000);
      spec.mutable_restart()->set_backoff_seconds(0.01);
      specs_.push_back(spec);
      Undisturbed& expected = undisturbed_.emplace_back();
      expected.losses = service_.RunUndisturbed(spec).Losses();
      expected.adapter = Sha256OfUndisturbed();
    }
    service_.KillCoordinator();
    service_.StartCoordinator();
  }

  void TearDown() override {
    if (!HasFailure()) return;
    std::cerr << "LEMO_FAULTS=" << faults_ << " LEMO_FAULT_SEED=" << seed_ << "\n";
    if (mischief_ != nullptr) {
      std::cerr << mischief_->Log();
      service_.workspace().Write("faults", mischief_->Log());
      service_.workspace().Write("errors", mischief_->Errors());
    }
    std::string histories;
    for (const Followed& job : Jobs()) {
      for (const auto& event : job.events) histories += event.ShortDebugString() + "\n";
    }
    service_.workspace().Write("histories", histories);
    const fs::path kept = service_.workspace().path().string() + "_kept";
    mischief_ = nullptr;
    std::error_code error;
    fs::copy(service_.workspace().path(), kept, fs::copy_options::recursive, error);
    std::cerr << "the workspace is kept in " << kept.string() << "\n";
  }

  std::string Sha256OfUndisturbed() const {
    return Sha256Hex(train::ReadAll(service_.workspace().path() / "undisturbed" / kAdapter));
  }

  // Faults and jobs together, until all jobs have ended.
  void Suffer();
  void CheckJob(const Followed& followed);
  void CheckThatNoneRanTwice();
  void StopEverything();
  void SweepAsADayLater(const fs::path& coordinator);
  void CheckThatNothingIsLeft();
  void Summarise();

  std::vector<Followed> Jobs() const {
    std::vector<Followed> all;
    for (const auto& client : clients_) {
      all.insert(all.end(), client->jobs().begin(), client->jobs().end());
    }
    return all;
  }

  const unsigned seed_ = static_cast<unsigned>(FromEnvironment("LEMO_FAULT_SEED", GetParam()));
  const int faults_ = FromEnvironment("LEMO_FAULTS", 20);
  const Clock::time_point begin_ = Clock::now();
  Service service_{{"--lease-seconds", "2"}};
  fs::path guard_;
  std::vector<lemo::v1::JobSpec> specs_;
  std::vector<Undisturbed> undisturbed_;
  std::unique_ptr<Mischief> mischief_;
  std::vector<std::unique_ptr<Client>> clients_;
  std::set<std::string> referenced_;  // contents that files and jobs name
};

void ServiceFaults::Suffer() {
  mischief_ = std::make_unique<Mischief>(&service_, LEMO_RANK_GUARD, seed_);
  std::atomic<bool> enough{false};
  std::atomic<Clock::time_point> deadline{Clock::time_point::max()};
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < kClients; ++i) {
    clients_.push_back(
        std::make_unique<Client>(mischief_->client_address(), &specs_, seed_ * kClients + i));
    threads.emplace_back(
        [&enough, &deadline, client = clients_.back().get()] { client->Run(enough, deadline); });
  }
  mischief_->Do(faults_);
  enough = true;
  mischief_->Undo();
  deadline = Clock::now() + kToTheEnd;
  for (std::thread& thread : threads) thread.join();
}

void ServiceFaults::CheckJob(const Followed& followed) {
  SCOPED_TRACE(followed.name);
  const Job job = service_.Get(followed.name);
  EXPECT_TRUE(followed.ended) << "its events have no end";
  ASSERT_EQ(job.state(), Job::SUCCEEDED) << job.ShortDebugString();
  const Undisturbed& expected = undisturbed_[followed.spec];
  EXPECT_EQ(Joined(FaultsOf(followed.events, expected.losses)), "");
  EXPECT_EQ(job.last_sequence(), static_cast<int64_t>(followed.events.size()));
  // Who comes later is told the same as who was there.
  const auto again = service_.Watch(followed.name, [](const auto&) { return false; });
  ASSERT_EQ(again.size(), followed.events.size());
  for (size_t i = 0; i < again.size(); ++i) {
    EXPECT_EQ(again[i].ShortDebugString(), followed.events[i].ShortDebugString());
  }
  EXPECT_EQ(service_.DownloadedSha256(followed.name, kAdapter), expected.adapter);
  for (const auto& artifact : job.artifacts()) referenced_.insert(artifact.sha256());
}

void ServiceFaults::CheckThatNoneRanTwice() {
  EXPECT_EQ(Joined(FilesBelow(guard_ / "violations")), "") << "job, ms since boot, process";
  EXPECT_GE(FilesBelow(guard_ / "runs").size(), Jobs().size());
}

void ServiceFaults::StopEverything() {
  EXPECT_TRUE(Eventually(kToBeSwept, [this] { return mischief_->AllConnected(); }));
  // An agent that was away when a job ended learns of it when it connects.
  for (const int code : mischief_->StopAgents()) EXPECT_EQ(code, 0);
  mischief_->StartAgents();
  EXPECT_TRUE(Eventually(kToBeSwept, [this] { return mischief_->AllConnected(); }));
  for (const fs::path& agent : mischief_->AgentDirs()) {
    EXPECT_TRUE(Eventually(kToBeSwept, [&agent] {
      std::error_code error;
      return fs::is_empty(agent / "jobs", error) && !error;
    })) << Joined(FilesBelow(agent));
  }
  for (const int code : mischief_->StopAgents()) EXPECT_EQ(code, 0);
  EXPECT_EQ(service_.StopCoordinator(), 0);
}

// What broken-off uploads and lost attempts leave in the store is the coordinator's to remove, a
// day later.
void ServiceFaults::SweepAsADayLater(const fs::path& coordinator) {
  const auto store = OpenSqliteStore((coordinator / "lemo.db").string());
  const auto artifacts = OpenLocalArtifactStore((coordinator / "artifacts").string());
  const auto checkpoints = OpenLocalArtifactStore((coordinator / "checkpoints").string());
  ASSERT_TRUE(store.ok() && artifacts.ok() && checkpoints.ok());
  LogFiles logs((coordinator / "logs").string());
  Janitor janitor({}, store->get(), artifacts->get(), checkpoints->get(), &logs);
  EXPECT_EQ(janitor.Sweep(absl::Now() + absl::Hours(25)).status(), absl::OkStatus());
}

void ServiceFaults::CheckThatNothingIsLeft() {
  EXPECT_TRUE(Eventually(std::chrono::seconds(5), [] { return MarkedProcesses().empty(); }));
  for (const MarkedProcess& process : MarkedProcesses()) {
    ADD_FAILURE() << process.pid << " " << process.name << ": " << Joined(process.words);
    process.Signal(SIGKILL);
  }
  const fs::path coordinator = service_.workspace().path() / "coordinator";
  EXPECT_EQ(Joined(FilesBelow(coordinator / "validation")), "");
  SweepAsADayLater(coordinator);
  EXPECT_EQ(Joined(FilesBelow(coordinator / "checkpoints")), "");
  EXPECT_EQ(Joined(FilesBelow(coordinator / "artifacts" / "incoming")), "");
  for (const char* file : {"train.jsonl", "eval.jsonl"}) {
    referenced_.insert(Sha256Hex(train::ReadAll(service_.workspace().path() / file)));
  }
  for (const std::string& file : FilesBelow(coordinator / "artifacts" / "sha256")) {
    EXPECT_EQ(referenced_.count(fs::path(file).filename()), 1u) << file << " is nobody's";
  }
  std::vector<fs::path> directories = mischief_->AgentDirs();
  directories.push_back(coordinator);
  for (const fs::path& directory : directories) {
    for (const std::string& file : FilesBelow(directory)) {
      const std::string extension = fs::path(file).extension();
      EXPECT_TRUE(extension != ".tmp" && extension != ".part") << directory / file;
    }
  }
}

void ServiceFaults::Summarise() {
  int attempts = 0, restarted = 0;
  size_t events = 0;
  const std::vector<Followed> jobs = Jobs();
  for (const Followed& job : jobs) {
    const int last = job.events.empty() ? 0 : job.events.back().attempt();
    attempts += last;
    restarted += last > 1;
    events += job.events.size();
  }
  ClientCounts sum;
  for (const auto& client : clients_) {
    sum.submissions += client->counts().submissions;
    sum.watches += client->counts().watches;
    sum.pauses += client->counts().pauses;
    sum.errors += client->counts().errors;
  }
  std::cout << "seed " << seed_ << ", " << faults_ << " faults:";
  for (const auto& [fault, count] : mischief_->counts()) {
    std::cout << " " << NameOf(fault) << " " << count << ",";
  }
  std::cout << " in all.\n"
            << jobs.size() << " jobs (" << restarted << " of several attempts), " << attempts
            << " attempts, " << FilesBelow(guard_ / "runs").size() << " starts of ranks, " << events
            << " events; " << sum.submissions << " calls to submit, " << sum.watches << " watches, "
            << sum.pauses << " pauses, " << sum.errors << " calls that failed; "
            << std::chrono::duration<double>(Clock::now() - begin_).count() << " s\n";
}

TEST_P(ServiceFaults, EveryJobEndsAsIfNothingHadHappened) {
  Suffer();
  const std::vector<Followed> jobs = Jobs();
  EXPECT_GE(jobs.size(), static_cast<size_t>(kClients));
  for (const Followed& job : jobs) CheckJob(job);
  CheckThatNoneRanTwice();
  StopEverything();
  CheckThatNothingIsLeft();
  Summarise();
}

INSTANTIATE_TEST_SUITE_P(Seeds, ServiceFaults, testing::Values(5U));

}  // namespace
}  // namespace lemo::coordinator
