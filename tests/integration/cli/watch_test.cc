// lemo job watch: every event once, whatever happens to the coordinator.
#include <csignal>
#include <sstream>

#include "gmock/gmock.h"
#include "nlohmann/json.hpp"
#include "tests/integration/cli/run_lemo.h"

namespace lemo::cli {
namespace {

using lemo::v1::Job;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class WatchTest : public CliTest {
 protected:
  void SetJob(Job::State state) {
    const std::lock_guard lock(state_.mutex);
    state_.jobs["jobs/a"].set_name("jobs/a");
    state_.jobs["jobs/a"].set_state(state);
  }
};

std::vector<int64_t> Sequences(const std::string& json_lines) {
  std::vector<int64_t> sequences;
  std::istringstream lines(json_lines);
  for (std::string line; std::getline(lines, line);) {
    sequences.push_back(nlohmann::json::parse(line)["sequence"]);
  }
  return sequences;
}

TEST_F(WatchTest, TheExitCodeIsTheJobs) {
  for (const auto& [state, code] : std::vector<std::pair<Job::State, int>>{
           {Job::SUCCEEDED, 0}, {Job::FAILED, 1}, {Job::CANCELLED, 3}}) {
    SetJob(state);
    state_.events["jobs/a"] = {StateEvent(1, Job::RUNNING), StepEvent(2, 1), StateEvent(3, state)};
    const Outcome watched = Run({"job", "watch", "a"});
    EXPECT_EQ(watched.code, code) << watched.err;
    EXPECT_THAT(watched.out, HasSubstr("  step        1/2  loss"));
    const Outcome json = Run({"job", "watch", "a", "-o", "json"});
    EXPECT_EQ(json.code, code);
    EXPECT_THAT(Sequences(json.out), ElementsAre(1, 2, 3));
  }
}

TEST_F(WatchTest, SurvivesARestartOfTheCoordinator) {
  SetJob(Job::RUNNING);
  state_.events["jobs/a"] = {StateEvent(1, Job::RUNNING), StepEvent(2, 1)};
  const int port = server_->port();
  Lemo watch(directory_, server_->address(), {"job", "watch", "a", "-o", "json"});
  {
    std::unique_lock lock(state_.mutex);
    ASSERT_TRUE(state_.changed.wait_for(lock, std::chrono::seconds(60),
                                        [&] { return state_.watchers_waiting == 1; }));
  }
  ASSERT_TRUE(watch.WaitForOut("\"sequence\":2"));
  server_.reset();
  SetJob(Job::SUCCEEDED);
  state_.events["jobs/a"].push_back(StepEvent(3, 2));
  state_.events["jobs/a"].push_back(StateEvent(4, Job::SUCCEEDED));
  server_ = std::make_unique<FakeServer>(&state_, port);
  ASSERT_EQ(server_->port(), port);
  const Outcome watched = watch.Wait();
  EXPECT_EQ(watched.code, 0) << watched.err;
  EXPECT_THAT(Sequences(watched.out), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(state_.watched_from, ElementsAre(0, 2));
}

TEST_F(WatchTest, AHistoryThatWasPrunedStillEnds) {
  SetJob(Job::FAILED);
  state_.jobs["jobs/a"].mutable_failure()->set_message("no room");
  state_.events["jobs/a"] = {StateEvent(7, Job::FAILED)};
  const Outcome watched = Run({"job", "watch", "a"});
  EXPECT_EQ(watched.code, 1);
  EXPECT_THAT(watched.out, HasSubstr("no room"));
}

TEST_F(WatchTest, CtrlCLeavesTheJobAlone) {
  SetJob(Job::RUNNING);
  state_.events["jobs/a"] = {StateEvent(1, Job::RUNNING)};
  Lemo watch(directory_, server_->address(), {"job", "watch", "a"});
  ASSERT_TRUE(watch.WaitForOut("RUNNING"));
  watch.Signal(SIGINT);
  const Outcome watched = watch.Wait();
  EXPECT_EQ(watched.code, 130);
  EXPECT_THAT(watched.err, HasSubstr("jobs/a goes on; look again with: lemo job watch jobs/a"));
  EXPECT_EQ(state_.jobs["jobs/a"].state(), Job::RUNNING);
}

}  // namespace
}  // namespace lemo::cli
