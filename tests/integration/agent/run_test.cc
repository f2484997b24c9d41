// From an assignment to its end, undisturbed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <poll.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "nlohmann/json.hpp"
#include "tests/integration/agent/harness.h"
#include "worker/agent/devices.h"

namespace lemo::agent {
namespace {

namespace fs = std::filesystem;
using lemo::v1::AttemptEnded;
using lemo::v1::Failure;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

class Run : public AgentTest {};

TEST_F(Run, SaysHelloWithWhatItHas) {
  const fs::path rates = directory_ / "rates.json";
  std::ofstream(rates) << R"({"rates": [{"type": "cpu", "products": 5.0}]})";
  ::setenv("LEMO_RATES", rates.c_str(), /*overwrite=*/1);
  StartAgent();
  const lemo::v1::Hello hello = coordinator_.WaitForHello(1);
  ::setenv("LEMO_RATES", "", /*overwrite=*/1);
  EXPECT_EQ(hello.worker(), agent_->worker());
  EXPECT_EQ(hello.host(), "test");
  ASSERT_EQ(hello.devices_size(), 1);
  EXPECT_EQ(hello.devices(0).kind(), lemo::v1::Device::CPU);
  EXPECT_EQ(hello.devices(0).threads(), ThreadsOfCpu(1));
  ASSERT_EQ(hello.rates_size(), 1);
  EXPECT_EQ(hello.rates(0).products(), 5);
  EXPECT_EQ(hello.devices(0).memory_bytes(), hello.host_memory_bytes());
  EXPECT_GT(hello.host_memory_bytes(), 0);
  ASSERT_EQ(hello.model_paths_size(), 1);
  EXPECT_EQ(hello.model_paths(0), (directory_ / "models" / "tiny").string());
  EXPECT_EQ(hello.attempts_size(), 0);
}

TEST_F(Run, HandsOverTheResultOfASuccess) {
  StartAgent();
  Assign("a", "stderr hello log\nsteps 1 700\npublish\nresult\n");
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  const KnownAttempt attempt = coordinator_.Get({"jobs/a", 1});
  EXPECT_EQ(attempt.ended->outcome(), AttemptEnded::SUCCEEDED) << attempt.ended->DebugString();
  EXPECT_THAT(attempt.faults, IsEmpty());
  ASSERT_EQ(attempt.events.size(), 701u);
  for (int i = 0; i < 700; ++i) EXPECT_EQ(attempt.events[i].step().step(), i + 1);
  // No path of the worker is told.
  EXPECT_EQ(attempt.events[700].result().adapter_dir(), "adapter");
  EXPECT_EQ(attempt.started, 1);
  EXPECT_EQ(attempt.logs.at(0), "hello log\n");
  EXPECT_GT(attempt.ended->run_seconds(), 0);
  ASSERT_EQ(attempt.ended->artifacts_size(), 3);
  EXPECT_EQ(attempt.uploads.size(), 3u);
  EXPECT_EQ(attempt.uploads.at("adapter/adapter_model.safetensors"), std::string(600'000, 'w'));
  EXPECT_EQ(attempt.uploads.at("adapter/empty.txt"), "");
  EXPECT_EQ(attempt.uploads.at("report.json"), "{}");
  EXPECT_TRUE(WaitUntilGone(JobDirectory("a")));
}

TEST_F(Run, PicturesOfKeptBlocksStayOnTheWorker) {
  StartAgent();
  Assign("a", "step 1\nselection 500000\nselection 10\nstep 2\nselection 10\npublish\nresult\n");
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  const KnownAttempt attempt = coordinator_.Get({"jobs/a", 1});
  EXPECT_EQ(attempt.ended->outcome(), AttemptEnded::SUCCEEDED) << attempt.ended->DebugString();
  // Sequences have no gap where they were.
  EXPECT_THAT(attempt.faults, IsEmpty());
  ASSERT_EQ(attempt.events.size(), 3u);
  EXPECT_EQ(attempt.events[1].step().step(), 2);
  EXPECT_EQ(attempt.events[1].sequence(), 2);
  EXPECT_TRUE(attempt.events[2].has_result());
}

// Where the ranks look before every step; what an attempt before was told is of no account.
TEST_F(Run, WritesTheBudgetThatTheCoordinatorSays) {
  const fs::path budget = JobDirectory("a") / "out" / "budget";
  const auto says = [&](const std::string& bytes) {
    for (int i = 0; i < 3000; ++i) {
      std::ifstream file(budget);
      if (std::string text; std::getline(file, text) && text == bytes) return true;
      ::poll(nullptr, 0, 10);
    }
    return false;
  };
  fs::create_directories(budget.parent_path());
  std::ofstream(budget) << "17\n";
  StartAgent();
  lemo::v1::Assignment assignment = MakeAssignment("a", "bytes 1\nstep 1\nhold\n");
  assignment.set_contract_bytes(1000);
  assignment.mutable_run()->mutable_memory()->set_budget_bytes(800);
  coordinator_.Assign(assignment);
  ASSERT_TRUE(coordinator_.WaitForSteps({"jobs/a", 1}, 1));
  EXPECT_FALSE(fs::exists(budget));
  coordinator_.SetBudget(assignment.id(), 700);
  EXPECT_TRUE(says("700"));
  coordinator_.SetBudget(assignment.id(), 900);
  EXPECT_TRUE(says("800")) << "the run's own bound is less";
  lemo::v1::AttemptId other = assignment.id();
  other.set_attempt(2);
  coordinator_.SetBudget(other, 600);
  coordinator_.SetBudget(assignment.id(), 500);
  EXPECT_TRUE(says("500"));
}

TEST_F(Run, GivesTheRankPathsForNames) {
  StartAgent();
  Assign("a", "spec\npublish\nresult\n");
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  const KnownAttempt attempt = coordinator_.Get({"jobs/a", 1});
  // What the rank saw, with names put back for paths where there is a name.
  const auto spec = nlohmann::json::parse(attempt.events.at(0).phase().detail());
  EXPECT_EQ(spec["device"], "cpu");
  EXPECT_EQ(spec["data"]["train"][0]["path"], "files/a");
  EXPECT_EQ(spec["model"]["path"], "models/tiny");
  EXPECT_EQ(spec["output"]["dir"], (JobDirectory("a") / "out").string());
}

TEST_F(Run, PassesFaultsOfTheUserWithNamesForPaths) {
  StartAgent();
  Assign("a", "stderr on the way out\nerror 2 fault\n");
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  const KnownAttempt attempt = coordinator_.Get({"jobs/a", 1});
  EXPECT_EQ(attempt.ended->outcome(), AttemptEnded::FAILED);
  const Failure& failure = attempt.ended->failure();
  EXPECT_EQ(failure.kind(), Failure::USER_ERROR);
  EXPECT_EQ(failure.message(), "fault in files/a");
  EXPECT_EQ(failure.advice(), "do otherwise");
  ASSERT_EQ(failure.violations_size(), 1);
  EXPECT_EQ(failure.violations(0).file(), "files/a");
  EXPECT_EQ(failure.violations(0).line(), 3);
  EXPECT_EQ(failure.log_tail(), "on the way out\n");
  ASSERT_EQ(attempt.events.size(), 1u);
  EXPECT_EQ(attempt.events[0].error().message(), "fault in files/a");
  EXPECT_TRUE(WaitUntilGone(JobDirectory("a")));
}

TEST_F(Run, TellsWhoseFaultItWas) {
  StartAgent();
  const struct {
    const char* id;
    const char* script;
    Failure::Kind kind;
    const char* message;
  } cases[] = {
      {"memory", "error 3 full\n", Failure::OUT_OF_MEMORY, "full in files/memory"},
      {"ours", "error 4 broken\n", Failure::SYSTEM_ERROR, "broken in files/ours"},
      {"killed", "raise 9\n", Failure::SYSTEM_ERROR, "SIGKILL"},
      {"crashed", "raise 6\n", Failure::SYSTEM_ERROR, "SIGABRT"},
      {"code", "exit 77\n", Failure::SYSTEM_ERROR, "77"},
      {"garbage", "garbage\nstay\n", Failure::SYSTEM_ERROR, "events"},
      {"nothing", "result\n", Failure::SYSTEM_ERROR, "no result"},
  };
  for (const auto& [id, script, kind, message] : cases) {
    SCOPED_TRACE(id);
    const lemo::v1::AttemptId attempt = Assign(id, script);
    ASSERT_TRUE(coordinator_.WaitForEnd({attempt.job(), 1}));
    const AttemptEnded ended = *coordinator_.Get({attempt.job(), 1}).ended;
    EXPECT_EQ(ended.outcome(), AttemptEnded::FAILED);
    EXPECT_EQ(ended.failure().kind(), kind);
    EXPECT_THAT(ended.failure().message(), HasSubstr(message));
    EXPECT_THAT(ended.failure().message(),
                Not(HasSubstr("agent/jobs/" + std::string(id) + "/run")));
  }
  EXPECT_THAT(coordinator_.Get({"jobs/killed", 1}).ended->failure().advice(),
              HasSubstr("out-of-memory killer"));
}

TEST_F(Run, RefusesWhatItCannotRun) {
  StartAgent();
  lemo::v1::Assignment gang = MakeAssignment("gang", "hold\n");
  gang.set_ranks(2);  // with one device
  lemo::v1::Assignment device = MakeAssignment("device", "hold\n");
  device.set_devices(0, 7);
  lemo::v1::Assignment model = MakeAssignment("model", "hold\n");
  model.set_model_path((directory_ / "models" / "none").string());
  lemo::v1::Assignment outside = MakeAssignment("outside", "hold\n");
  outside.set_model_path((directory_ / "models" / ".." / "agent").string());
  lemo::v1::Assignment unknown = MakeAssignment("unknown", "hold\n");
  unknown.mutable_run()->mutable_data()->add_eval()->set_path("/etc/passwd");
  const std::pair<lemo::v1::Assignment*, const char*> cases[] = {
      {&gang, "devices: 1 for 2 ranks"},
      {&device, "devices: 7"},
      {&model, "model.path"},
      {&outside, "under no model root"},
      {&unknown, "data.eval[0].path: /etc/passwd"},
  };
  for (const auto& [assignment, message] : cases) {
    coordinator_.Assign(*assignment);
    ASSERT_TRUE(coordinator_.WaitForEnd({assignment->id().job(), 1}));
    const AttemptEnded ended = *coordinator_.Get({assignment->id().job(), 1}).ended;
    EXPECT_EQ(ended.outcome(), AttemptEnded::FAILED);
    EXPECT_EQ(ended.failure().kind(), Failure::SYSTEM_ERROR);
    EXPECT_THAT(ended.failure().message(), HasSubstr(message));
  }
}

TEST_F(Run, LeavesNoProcessOfAGangBehind) {
  StartAgent();
  Assign("a", "child\npublish\nresult\n");
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  const KnownAttempt attempt = coordinator_.Get({"jobs/a", 1});
  EXPECT_EQ(attempt.ended->outcome(), AttemptEnded::SUCCEEDED);
  const pid_t child = PidIn(attempt, "child");
  ASSERT_GT(child, 0);
  // Gone before the end was told, and reaped.
  EXPECT_EQ(::kill(child, 0), -1);
}

TEST_F(Run, IgnoresNamesThatLeaveItsDirectory) {
  StartAgent();
  lemo::v1::Assignment escape = MakeAssignment("a", "hold\n");
  escape.mutable_id()->set_job("jobs/../../escape");
  coordinator_.Assign(escape);
  Assign("b", "error 2 fault\n");
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/b", 1}));
  EXPECT_FALSE(coordinator_.Get({"jobs/../../escape", 1}).ended);
  EXPECT_FALSE(std::filesystem::exists(directory_ / "escape"));
}

}  // namespace
}  // namespace lemo::agent
