// Asked to stop: by the coordinator, and by who ends the agent.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/integration/agent/harness.h"

namespace lemo::agent {
namespace {

using lemo::v1::AttemptEnded;
using lemo::v1::AttemptSignal;

class Stop : public AgentTest {};

TEST_F(Stop, KillEndsTheWholeGang) {
  StartAgent();
  const lemo::v1::AttemptId id = Assign("a", "child\npid\nstay\n");
  ASSERT_TRUE(coordinator_.WaitFor({"jobs/a", 1}, HasPhase("pid")));
  coordinator_.Signal(id, AttemptSignal::KILL);
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  const KnownAttempt attempt = coordinator_.Get({"jobs/a", 1});
  EXPECT_EQ(attempt.ended->outcome(), AttemptEnded::STOPPED);
  EXPECT_EQ(::kill(PidIn(attempt, "pid"), 0), -1);
  EXPECT_EQ(::kill(PidIn(attempt, "child"), 0), -1);
}

TEST_F(Stop, ACheckpointIsTheLastEvent) {
  StartAgent();
  const lemo::v1::AttemptId id = Assign("a", "steps 1 5\nhold\n");
  ASSERT_TRUE(coordinator_.WaitForSteps({"jobs/a", 1}, 5));
  coordinator_.Signal(id, AttemptSignal::CHECKPOINT_AND_STOP);
  coordinator_.Signal(id, AttemptSignal::CHECKPOINT_AND_STOP);
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  const KnownAttempt attempt = coordinator_.Get({"jobs/a", 1});
  EXPECT_EQ(attempt.ended->outcome(), AttemptEnded::STOPPED);
  EXPECT_FALSE(attempt.ended->has_failure());
  ASSERT_EQ(attempt.events.size(), 6u);
  EXPECT_TRUE(attempt.events[5].has_checkpoint());
}

TEST_F(Stop, ALaterAttemptReplacesAnEarlierOne) {
  StartAgent();
  Assign("a", "pid\nstay\n");
  ASSERT_TRUE(coordinator_.WaitFor({"jobs/a", 1}, HasPhase("pid")));
  const pid_t rank = PidIn(coordinator_.Get({"jobs/a", 1}), "pid");
  Assign("a", "publish\nresult\n", 2);
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 2}));
  EXPECT_EQ(coordinator_.Get({"jobs/a", 2}).ended->outcome(), AttemptEnded::SUCCEEDED);
  EXPECT_EQ(::kill(rank, 0), -1);  // gone before the second began
}

TEST_F(Stop, ADrainLetsRanksCheckpointAndTellsTheirEnd) {
  StartAgent();
  Assign("a", "pid\nhold\n");
  ASSERT_TRUE(coordinator_.WaitFor({"jobs/a", 1}, HasPhase("pid")));
  DrainAgent();
  EXPECT_TRUE(coordinator_.WaitForDrain());
  const KnownAttempt attempt = coordinator_.Get({"jobs/a", 1});
  ASSERT_TRUE(attempt.ended);
  EXPECT_EQ(attempt.ended->outcome(), AttemptEnded::STOPPED);
  EXPECT_TRUE(attempt.events.back().has_checkpoint());
  EXPECT_FALSE(std::filesystem::exists(JobDirectory("a") / "attempt.json"));
}

TEST_F(Stop, ADrainWithoutACoordinatorLeavesTheEndToTheNextAgent) {
  StartAgent();
  Assign("a", "pid\nhold\n");
  ASSERT_TRUE(coordinator_.WaitFor({"jobs/a", 1}, HasPhase("pid")));
  const pid_t rank = PidIn(coordinator_.Get({"jobs/a", 1}), "pid");
  coordinator_.GoAway();
  DrainAgent();
  EXPECT_EQ(::kill(rank, 0), -1);
  coordinator_.ComeBack();
  StartAgent();
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  const KnownAttempt attempt = coordinator_.Get({"jobs/a", 1});
  EXPECT_EQ(attempt.ended->outcome(), AttemptEnded::STOPPED);
  EXPECT_TRUE(attempt.events.back().has_checkpoint());
}

}  // namespace
}  // namespace lemo::agent
