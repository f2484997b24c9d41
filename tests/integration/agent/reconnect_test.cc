// The coordinator goes away and comes back: nothing is lost, doubled or out of order.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/integration/agent/harness.h"

namespace lemo::agent {
namespace {

using lemo::v1::AttemptEnded;
using testing::HasSubstr;
using testing::IsEmpty;

class Reconnect : public AgentTest {};

void ExpectSteps(const KnownAttempt& attempt, int steps) {
  EXPECT_THAT(attempt.faults, IsEmpty());
  int last = 0;
  for (const lemo::v1::RunEvent& event : attempt.events) {
    if (!event.has_step()) continue;
    EXPECT_EQ(event.step().step(), ++last);
  }
  EXPECT_EQ(last, steps);
}

TEST_F(Reconnect, SendsAgainWhatWasNotStored) {
  StartAgent();
  coordinator_.Set([](auto* manners) { manners->store = false; });
  const lemo::v1::AttemptId id = Assign("a", "steps 1 3000\nhold\n");
  ASSERT_TRUE(coordinator_.WaitFor(
      {"jobs/a", 1}, [](const KnownAttempt& attempt) { return attempt.started > 0; }));
  coordinator_.Set([](auto* manners) { manners->store = true; });
  coordinator_.Cut();
  ASSERT_TRUE(coordinator_.WaitForSteps({"jobs/a", 1}, 3000));
  coordinator_.Cut();
  coordinator_.WaitForHello(3);
  coordinator_.Signal(id, lemo::v1::AttemptSignal::CHECKPOINT_AND_STOP);
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  const KnownAttempt attempt = coordinator_.Get({"jobs/a", 1});
  ExpectSteps(attempt, 3000);
  EXPECT_EQ(attempt.ended->outcome(), AttemptEnded::STOPPED);
  EXPECT_EQ(attempt.ended->last_sequence(), 3001);  // the checkpoint's event came too
}

TEST_F(Reconnect, KeepsTheEndUntilTheCoordinatorIsBack) {
  StartAgent();
  Assign("a", "pid\nhold-once\nsteps 1 2000\npublish\nresult\n");
  ASSERT_TRUE(coordinator_.WaitFor({"jobs/a", 1}, HasPhase("pid")));
  const pid_t rank = PidIn(coordinator_.Get({"jobs/a", 1}), "pid");
  coordinator_.GoAway();
  // It ends while nobody listens: unasked, as far as the agent knows.
  ::kill(rank, SIGTERM);
  ASSERT_TRUE(WaitUntilDead(rank));
  coordinator_.ComeBack();
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  const KnownAttempt first = coordinator_.Get({"jobs/a", 1});
  EXPECT_THAT(first.faults, IsEmpty());
  EXPECT_EQ(first.ended->outcome(), AttemptEnded::FAILED);
  EXPECT_THAT(first.ended->failure().message(), HasSubstr("SIGTERM"));
  ASSERT_EQ(first.events.size(), 2u);
  EXPECT_EQ(first.events[1].checkpoint().path(), "checkpoint");
  // The next attempt finds the checkpoint.
  Assign("a", "pid\nhold-once\nsteps 1 2000\npublish\nresult\n", 2);
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 2}));
  const KnownAttempt second = coordinator_.Get({"jobs/a", 2});
  EXPECT_EQ(second.ended->outcome(), AttemptEnded::SUCCEEDED);
  ExpectSteps(second, 2000);
}

TEST_F(Reconnect, RepeatsTheEndUntilItIsForgotten) {
  StartAgent();
  coordinator_.Set([](auto* manners) { manners->forget = false; });
  Assign("a", "error 2 fault\n");
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  EXPECT_TRUE(std::filesystem::exists(JobDirectory("a")));
  StopAgent();
  // A new agent in the same directory has it still, under the same name.
  coordinator_.Set([](auto* manners) { manners->forget = true; });
  StartAgent();
  const lemo::v1::Hello hello = coordinator_.WaitForHello(2);
  ASSERT_EQ(hello.attempts_size(), 1);
  EXPECT_EQ(hello.attempts(0).id().job(), "jobs/a");
  EXPECT_FALSE(hello.attempts(0).running());
  EXPECT_EQ(hello.worker(), agent_->worker());
  EXPECT_TRUE(WaitUntilGone(JobDirectory("a")));
  EXPECT_FALSE(coordinator_.Get({"jobs/a", 1}).current);
}

TEST_F(Reconnect, EndsRanksBeforeTheLeaseIsOver) {
  coordinator_.Set([](auto* manners) { manners->lease_seconds = 1.5; });
  StartAgent();
  Assign("a", "pid\nhold\n");
  Assign("b", "pid\nstay\n");  // does not mind SIGTERM
  ASSERT_TRUE(coordinator_.WaitFor({"jobs/a", 1}, HasPhase("pid")));
  ASSERT_TRUE(coordinator_.WaitFor({"jobs/b", 1}, HasPhase("pid")));
  coordinator_.Set([](auto* manners) { manners->welcome = manners->renew = false; });
  EXPECT_TRUE(WaitUntilDead(PidIn(coordinator_.Get({"jobs/a", 1}), "pid")));
  EXPECT_TRUE(WaitUntilDead(PidIn(coordinator_.Get({"jobs/b", 1}), "pid")));
  coordinator_.Set([](auto* manners) { manners->welcome = manners->renew = true; });
  for (const char* job : {"jobs/a", "jobs/b"}) {
    ASSERT_TRUE(coordinator_.WaitForEnd({job, 1}));
    const AttemptEnded ended = *coordinator_.Get({job, 1}).ended;
    EXPECT_EQ(ended.outcome(), AttemptEnded::FAILED);
    EXPECT_EQ(ended.failure().kind(), lemo::v1::Failure::SYSTEM_ERROR);
    EXPECT_THAT(ended.failure().message(), HasSubstr("lease"));
  }
  // The first had time for its checkpoint.
  EXPECT_TRUE(coordinator_.Get({"jobs/a", 1}).events.back().has_checkpoint());
}

TEST_F(Reconnect, EndsWhatIsNotCurrentAnyMore) {
  StartAgent();
  Assign("a", "child\npid\nstay\n");
  ASSERT_TRUE(coordinator_.WaitFor({"jobs/a", 1}, HasPhase("pid")));
  const KnownAttempt attempt = coordinator_.Get({"jobs/a", 1});
  coordinator_.SetNotCurrent({"jobs/a", 1});
  coordinator_.SetJobState("jobs/a", lemo::v1::Job::CANCELLED);
  coordinator_.Cut();
  EXPECT_TRUE(WaitUntilDead(PidIn(attempt, "pid")));
  EXPECT_TRUE(WaitUntilDead(PidIn(attempt, "child")));
  // The job has ended elsewhere, so nothing of it is kept.
  EXPECT_TRUE(WaitUntilGone(JobDirectory("a")));
  EXPECT_FALSE(coordinator_.Get({"jobs/a", 1}).ended);
}

TEST_F(Reconnect, KeepsCheckpointsOfAJobThatGoesOn) {
  StartAgent();
  const lemo::v1::AttemptId id = Assign("a", "pid\nhold\n");
  ASSERT_TRUE(coordinator_.WaitFor({"jobs/a", 1}, HasPhase("pid")));
  coordinator_.Signal(id, lemo::v1::AttemptSignal::CHECKPOINT_AND_STOP);
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  EXPECT_TRUE(WaitUntilGone(JobDirectory("a") / "attempt.json"));
  EXPECT_TRUE(std::filesystem::exists(JobDirectory("a") / "out" / "checkpoint"));
  coordinator_.SetJobState("jobs/a", lemo::v1::Job::CANCELLED);
  coordinator_.Cut();  // it asks after such jobs when it dials in, among other times
  EXPECT_TRUE(WaitUntilGone(JobDirectory("a")));
}

}  // namespace
}  // namespace lemo::agent
