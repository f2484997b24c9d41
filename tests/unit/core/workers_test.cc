// Sessions, leases, cordons, drains, and the coordinator's own restart.
#include "tests/unit/core/harness.h"

namespace lemo::coordinator {
namespace {

TEST_F(CoreTest, WelcomeComesFirstAndTellsTheRules) {
  Queue();
  Connect(1);
  ASSERT_EQ(Sent(1).size(), 2u);
  EXPECT_EQ(Sent(1)[0].welcome().lease_seconds(), 10);
  EXPECT_EQ(Sent(1)[0].welcome().heartbeat_seconds(), 2);
  EXPECT_TRUE(Sent(1)[1].has_assign());
}

TEST_F(CoreTest, HeartbeatsRenewTheLeaseAndStoreNothing) {
  Run();
  for (int i = 0; i < 30; ++i) {
    Pass(absl::Seconds(1));
    AgentMessage message;
    message.mutable_heartbeat()->set_number(i);
    Say(1, message);
    ASSERT_EQ(last_.size(), 1u);
    EXPECT_EQ(Sent(1)[0].lease().number(), i);
  }
  EXPECT_EQ(State(), Job::RUNNING);
}

TEST_F(CoreTest, ALostLeaseRestartsItsJobsAfterTheMargin) {
  Run();
  Pass(absl::Seconds(14.9));
  EXPECT_EQ(State(), Job::RUNNING);
  Pass(absl::Seconds(0.2));
  EXPECT_EQ(State(), Job::QUEUED);
  EXPECT_EQ(Count<Close>(), 1);
  EXPECT_THAT(Stored().reason(), ::testing::HasSubstr("workers/a was lost"));
  ASSERT_EQ(core_.Workers().size(), 1u);
  EXPECT_EQ(core_.Workers()[0].state(), lemo::v1::Worker::LOST);
  Steps(1, 1, 1, 1);  // of the closed stream
  EXPECT_TRUE(last_.empty());
  Pass(absl::Minutes(11));
  EXPECT_TRUE(core_.Workers().empty());
}

TEST_F(CoreTest, TheTimeOfALostAttemptIsCharged) {
  Run();
  PassWithHeartbeats(1, absl::Seconds(60));
  Pass(absl::Seconds(16));
  ASSERT_EQ(State(), Job::QUEUED);
  // Until it was declared lost: the lease and the margin after the last heartbeat.
  EXPECT_NEAR(stored_[kJob].run_seconds_used, 75, 0.1);
  Connect(2);
  ASSERT_EQ(State(), Job::STARTING);
  EXPECT_NEAR(Sent(2)[1].assign().run_seconds_used(), 75, 0.1);
  Pass(absl::Seconds(20));  // an attempt that never ran costs nothing
  EXPECT_NEAR(stored_[kJob].run_seconds_used, 75, 0.1);
}

TEST_F(CoreTest, TheTimeThatAnAgentTellsIsNotChargedTwice) {
  Run();
  PassWithHeartbeats(1, absl::Seconds(60));
  Ended(1, 1, AttemptEnded::FAILED, 0);  // of no time
  EXPECT_EQ(State(), Job::QUEUED);
  EXPECT_EQ(stored_[kJob].run_seconds_used, 0);
}

TEST_F(CoreTest, AnAgentThatForgotItsRunIsCharged) {
  Run();
  PassWithHeartbeats(1, absl::Seconds(60));
  Connect(2);
  EXPECT_EQ(State(), Job::QUEUED);
  EXPECT_NEAR(stored_[kJob].run_seconds_used, 60, 0.1);
}

TEST_F(CoreTest, LostAttemptsUseUpTheRunTime) {
  Submitted event;
  event.record.job.set_name(kJob);
  event.record.job.mutable_spec()->mutable_limits()->set_run_seconds(100);
  ASSERT_TRUE(Ask(event).ok());
  Do(Validated{kJob, std::nullopt, 0});
  for (int session = 1; State() != Job::FAILED; ++session) {
    ASSERT_LE(session, 2);
    Connect(session);
    Started(session, session);
    PassWithHeartbeats(session, absl::Seconds(45));
    Pass(absl::Seconds(20));
  }
  EXPECT_EQ(Stored().restarts(), 1);
  EXPECT_EQ(Stored().failure().kind(), Failure::LIMIT_EXCEEDED);
  EXPECT_THAT(Stored().failure().message(),
              ::testing::AllOf(::testing::HasSubstr("limits.run_seconds: ran for 120 s, 100 s"),
                               ::testing::HasSubstr("workers/a was lost")));
}

TEST_F(CoreTest, ALapsedLeaseTakesNoNewJobs) {
  Connect(1);
  Pass(absl::Seconds(11));
  Queue();
  EXPECT_EQ(Stored().reason_code(), Job::WORKERS_CORDONED);
  Beat(1);
  EXPECT_EQ(State(), Job::STARTING);
}

TEST_F(CoreTest, ABrokenStreamDoesNotEndTheLease) {
  Run();
  Steps(1, 1, 1, 4);
  Do(AgentDisconnected{1});
  Pass(absl::Seconds(8));
  Connect(2, {{kJob, 1}});
  ASSERT_EQ(Sent(2).size(), 1u);
  ASSERT_EQ(Sent(2)[0].welcome().attempts_size(), 1);
  EXPECT_EQ(Sent(2)[0].welcome().attempts(0).through_sequence(), 4);
  EXPECT_EQ(State(), Job::RUNNING);
}

TEST_F(CoreTest, ANewerStreamClosesTheFormer) {
  Run();
  Connect(2, {{kJob, 1}});
  ASSERT_EQ(Count<Close>(), 1);
  Ended(1, 1, AttemptEnded::STOPPED, 0);  // by the former
  EXPECT_TRUE(last_.empty());
  Do(AgentDisconnected{1});
  EXPECT_TRUE(last_.empty());
  Steps(2, 1, 1, 1);
  EXPECT_EQ(Count<Persist>(), 1);
}

TEST_F(CoreTest, AnAssignmentThatNeverArrivedIsSentAgain) {
  Connect(1);
  Queue();
  Connect(2);
  ASSERT_EQ(Sent(2).size(), 2u);
  EXPECT_EQ(Sent(2)[1].assign().id().attempt(), 1);
  EXPECT_EQ(State(), Job::STARTING);
}

TEST_F(CoreTest, AStoppedJobThatNeverArrivedIsOver) {
  Connect(1);
  Queue();
  Do(CancelRequested{kJob});
  Connect(2);
  EXPECT_EQ(State(), Job::CANCELLED);
  ASSERT_EQ(Sent(2).size(), 1u);
}

TEST_F(CoreTest, ARunningJobThatItsAgentDoesNotKnowIsRestarted) {
  Run();
  Connect(2);
  EXPECT_EQ(State(), Job::QUEUED);
  EXPECT_EQ(Stored().restarts(), 1);
}

TEST_F(CoreTest, SignalsAreRepeatedToAnAgentThatReturns) {
  Run();
  Do(AgentDisconnected{1});
  Do(CancelRequested{kJob});
  EXPECT_TRUE(Sent(1).empty());
  Connect(2, {{kJob, 1}});
  ASSERT_EQ(Sent(2).size(), 2u);
  EXPECT_EQ(Sent(2)[1].signal().signal(), AttemptSignal::KILL);
}

TEST_F(CoreTest, ACordonedWorkerKeepsItsJobsAndGetsNone) {
  Connect(1, {}, kWorker, 2);
  Queue("jobs/1");
  EXPECT_TRUE(Ask(CordonRequested{kWorker, true}).ok());
  EXPECT_EQ(Count<PersistWorker>(), 1);
  EXPECT_EQ(core_.Workers()[0].state(), lemo::v1::Worker::CORDONED);
  EXPECT_TRUE(Ask(CordonRequested{kWorker, true}).ok());
  EXPECT_EQ(Count<PersistWorker>(), 0);
  Queue("jobs/2");
  EXPECT_EQ(Stored("jobs/2").reason_code(), Job::WORKERS_CORDONED);
  EXPECT_EQ(State("jobs/1"), Job::STARTING);
  Do(CordonRequested{kWorker, false});
  EXPECT_EQ(State("jobs/2"), Job::STARTING);
  EXPECT_TRUE(absl::IsNotFound(Ask(CordonRequested{"workers/none", true})));
  EXPECT_TRUE(absl::IsNotFound(Ask(DrainRequested{"workers/none"})));
}

TEST_F(CoreTest, ADrainMovesJobs) {
  Run();
  Connect(2, {}, "workers/b");
  EXPECT_TRUE(Ask(DrainRequested{kWorker}).ok());
  ASSERT_EQ(Sent(1).size(), 1u);
  EXPECT_EQ(Sent(1)[0].signal().signal(), AttemptSignal::CHECKPOINT_AND_STOP);
  EXPECT_EQ(core_.Workers()[0].state(), lemo::v1::Worker::DRAINING);
  Ended(1, 1, AttemptEnded::STOPPED, 0);
  EXPECT_EQ(State(), Job::STARTING);
  EXPECT_EQ(Stored().worker(), "workers/b");
  EXPECT_EQ(Stored().restarts(), 0);
}

TEST_F(CoreTest, AnAgentThatLeavesIsDrainedUntilItReturns) {
  Run();
  AgentMessage message;
  message.mutable_drain();
  Say(1, message);
  ASSERT_EQ(Sent(1).size(), 1u);
  EXPECT_EQ(Sent(1)[0].signal().signal(), AttemptSignal::CHECKPOINT_AND_STOP);
  EXPECT_EQ(Count<PersistWorker>(), 0);
  Ended(1, 1, AttemptEnded::STOPPED, 0);
  EXPECT_EQ(Stored().reason_code(), Job::WORKERS_CORDONED);
  Connect(2);
  EXPECT_EQ(State(), Job::STARTING);
}

TEST_F(CoreTest, BreachesOfTheProtocolCloseTheStream) {
  Connect(1, {}, "machine");
  EXPECT_EQ(Count<Close>(), 1);
  Connect(2);
  AgentMessage hello;
  hello.mutable_hello()->set_worker(kWorker);
  Say(2, hello);
  EXPECT_EQ(Count<Close>(), 1);
  AgentConnected twice;
  twice.session = 3;
  twice.hello.set_worker(kWorker);
  twice.hello.add_devices();
  twice.hello.add_devices();
  Do(twice);
  EXPECT_EQ(Count<Close>(), 1);
}

TEST_F(CoreTest, AClockThatIsSetEndsNoLease) {
  Run();
  now_ -= absl::Hours(1);
  Do(Tick{});
  PassWithHeartbeats(1, absl::Seconds(20));
  EXPECT_EQ(State(), Job::RUNNING);
  now_ += absl::Hours(3);
  Do(Tick{});
  EXPECT_EQ(State(), Job::RUNNING);
  Beat(1);
  Pass(absl::Seconds(14.9));
  EXPECT_EQ(State(), Job::RUNNING);
  Pass(absl::Seconds(0.2));
  EXPECT_EQ(State(), Job::QUEUED);
}

TEST_F(CoreTest, AClockThatIsSetForwardChargesNobody) {
  Run();
  PassWithHeartbeats(1, absl::Seconds(10));
  now_ += absl::Hours(24 * 365);
  Do(Tick{});
  Beat(1);
  now_ -= absl::Hours(24 * 365 * 20);
  Do(Tick{});
  Beat(1);
  EXPECT_EQ(State(), Job::RUNNING);
  Pass(absl::Seconds(16));
  ASSERT_EQ(State(), Job::QUEUED);
  EXPECT_LT(stored_[kJob].run_seconds_used, 45);
}

TEST_F(CoreTest, ABackOffOutlivesNoClockThatIsSetBack) {
  Run();
  Ended(1, 1, AttemptEnded::FAILED, 0);
  ASSERT_EQ(State(), Job::QUEUED);
  now_ -= absl::Hours(24 * 365);
  Do(Tick{});
  PassWithHeartbeats(1, absl::Seconds(3));
  EXPECT_EQ(State(), Job::STARTING);
}

class RecoverTest : public CoreTest {
 protected:
  std::vector<Effect> RecoverAll(const std::set<std::string>& cordoned = {}) {
    std::vector<JobRecord> jobs;
    for (const auto& [name, record] : stored_) jobs.push_back(record);
    core_ = Core(options_, &scheduler_);
    return core_.Recover(jobs, cordoned, now_);
  }
};

TEST_F(RecoverTest, RunningJobsGoOn) {
  Run();
  Steps(1, 1, 1, 3);
  EXPECT_TRUE(RecoverAll().empty());
  Pass(absl::Seconds(12));
  EXPECT_EQ(State(), Job::RUNNING);
  Connect(2, {{kJob, 1}});
  ASSERT_EQ(Sent(2)[0].welcome().attempts_size(), 1);
  EXPECT_EQ(Sent(2)[0].welcome().attempts(0).through_sequence(), 3);
  Queue("jobs/2");
  EXPECT_EQ(Stored("jobs/2").reason_code(), Job::DEVICES_BUSY);
}

TEST_F(RecoverTest, JobsOfAgentsThatStayAwayAreRestarted) {
  Run();
  RecoverAll();
  Pass(options_.recovery_grace + options_.fence_margin + absl::Seconds(1));
  EXPECT_EQ(State(), Job::QUEUED);
}

TEST_F(RecoverTest, TheTimeBeforeTheRestartIsChargedToo) {
  Run();
  PassWithHeartbeats(1, absl::Seconds(60));
  RecoverAll();
  Pass(options_.recovery_grace + options_.fence_margin + absl::Seconds(1));
  ASSERT_EQ(State(), Job::QUEUED);
  EXPECT_NEAR(stored_[kJob].run_seconds_used, 80, 0.1);
}

TEST_F(RecoverTest, AStartInTheFutureIsNoStart) {
  Run();
  now_ -= absl::Hours(24);
  RecoverAll();
  Pass(options_.recovery_grace + options_.fence_margin + absl::Seconds(1));
  ASSERT_EQ(State(), Job::QUEUED);
  EXPECT_NEAR(stored_[kJob].run_seconds_used, 20, 0.1);
}

TEST_F(RecoverTest, ValidationsBeginAgain) {
  Submit();
  std::vector<Effect> effects = RecoverAll();
  ASSERT_EQ(effects.size(), 1u);
  EXPECT_TRUE(std::holds_alternative<StartValidation>(effects[0]));
}

TEST_F(RecoverTest, TheQueueStaysAndCordonsHold) {
  Connect(1);
  Queue("jobs/1");
  now_ += absl::Seconds(1);
  Queue("jobs/2");
  Queue("jobs/3");
  RecoverAll({kWorker});
  ASSERT_EQ(core_.Queue().size(), 2u);
  EXPECT_EQ(core_.Queue()[0]->job.name(), "jobs/2");
  EXPECT_EQ(core_.Queue()[1]->job.name(), "jobs/3");
  Connect(2, {{"jobs/1", 1}}, kWorker, 4);
  EXPECT_EQ(Stored("jobs/2").reason_code(), Job::WORKERS_CORDONED);
  Do(CordonRequested{kWorker, false});
  EXPECT_EQ(State("jobs/3"), Job::STARTING);
}

TEST_F(RecoverTest, ADrainUnderWayGoesOn) {
  Run();
  Do(DrainRequested{kWorker});
  RecoverAll({kWorker});
  Connect(2, {{kJob, 1}});
  ASSERT_EQ(Sent(2).size(), 2u);
  EXPECT_EQ(Sent(2)[1].signal().signal(), AttemptSignal::CHECKPOINT_AND_STOP);
}

}  // namespace
}  // namespace lemo::coordinator
