// The agent as a process of its own, killed without a word.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/integration/agent/harness.h"

namespace lemo::agent {
namespace {

using lemo::v1::AttemptEnded;
using testing::HasSubstr;
using testing::IsEmpty;

class Kill : public AgentTest {};

TEST_F(Kill, RanksCheckpointWhenTheirAgentDies) {
  StartWorker();
  Assign("a", "steps 1 3\npid\nhold\n");
  ASSERT_TRUE(coordinator_.WaitFor({"jobs/a", 1}, HasPhase("pid")));
  const pid_t rank = PidIn(coordinator_.Get({"jobs/a", 1}), "pid");
  EndWorker(SIGKILL);
  EXPECT_TRUE(WaitUntilDead(rank));
  EXPECT_TRUE(std::filesystem::exists(JobDirectory("a") / "out" / "checkpoint"));
  StartWorker();
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  const KnownAttempt attempt = coordinator_.Get({"jobs/a", 1});
  EXPECT_EQ(attempt.ended->outcome(), AttemptEnded::FAILED);
  EXPECT_EQ(attempt.ended->failure().kind(), lemo::v1::Failure::SYSTEM_ERROR);
  EXPECT_EQ(attempt.ended->failure().message(), "the agent was restarted");
  EXPECT_THAT(attempt.faults, IsEmpty());
  EXPECT_EQ(attempt.ended->last_sequence(), static_cast<int64_t>(attempt.events.size()));
  // And the next attempt goes on from there.
  Assign("a", "hold-once\npublish\nresult\n", 2);
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 2}));
  EXPECT_EQ(coordinator_.Get({"jobs/a", 2}).ended->outcome(), AttemptEnded::SUCCEEDED);
}

TEST_F(Kill, NoChildOfARankOutlivesADeadAgent) {
  StartWorker();
  // The child does not get the kernel's signal, and would not mind it: the watchdog ends it.
  Assign("a", "child\npid\nhold\n");
  ASSERT_TRUE(coordinator_.WaitFor({"jobs/a", 1}, HasPhase("pid")));
  const KnownAttempt attempt = coordinator_.Get({"jobs/a", 1});
  EndWorker(SIGKILL);
  EXPECT_TRUE(WaitUntilDead(PidIn(attempt, "pid")));
  EXPECT_TRUE(WaitUntilDead(PidIn(attempt, "child")));
}

TEST_F(Kill, RanksOfAStoppedAgentEndWithItsLease) {
  coordinator_.Set([](auto* manners) { manners->lease_seconds = 1.5; });
  StartWorker();
  Assign("a", "child\npid\nstay\n");
  ASSERT_TRUE(coordinator_.WaitFor({"jobs/a", 1}, HasPhase("pid")));
  const KnownAttempt attempt = coordinator_.Get({"jobs/a", 1});
  ::kill(worker_pid_, SIGSTOP);
  // A zombie, since the parent that would reap it stands still, but it computes no more.
  EXPECT_TRUE(WaitUntilDead(PidIn(attempt, "pid")));
  EXPECT_TRUE(WaitUntilDead(PidIn(attempt, "child")));
  ::kill(worker_pid_, SIGCONT);
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  EXPECT_THAT(coordinator_.Get({"jobs/a", 1}).ended->failure().message(), HasSubstr("lease"));
}

TEST_F(Kill, SigtermDrains) {
  StartWorker();
  Assign("a", "pid\nhold\n");
  ASSERT_TRUE(coordinator_.WaitFor({"jobs/a", 1}, HasPhase("pid")));
  const int status = EndWorker(SIGTERM);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  const KnownAttempt attempt = coordinator_.Get({"jobs/a", 1});
  ASSERT_TRUE(attempt.ended);
  EXPECT_EQ(attempt.ended->outcome(), AttemptEnded::STOPPED);
}

TEST_F(Kill, OneAgentADirectory) {
  StartWorker();
  coordinator_.WaitForHello(1);
  const auto second = Agent::Create(Options(), nullptr);
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("another lemo-worker"));
}

}  // namespace
}  // namespace lemo::agent
