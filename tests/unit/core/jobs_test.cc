// What people ask of jobs.
#include "tests/unit/core/harness.h"

namespace lemo::coordinator {
namespace {

TEST_F(CoreTest, SubmittedIsStoredAndValidated) {
  Submit();
  ASSERT_EQ(last_.size(), 2u);
  EXPECT_TRUE(std::holds_alternative<Persist>(last_[0]));
  EXPECT_TRUE(std::holds_alternative<StartValidation>(last_[1]));
  EXPECT_EQ(State(), Job::VALIDATING);
  EXPECT_EQ(Stored().last_sequence(), 1);
  EXPECT_EQ(Stored().etag(), "1");
  EXPECT_EQ(Stored().update_time().seconds(), 1'000'000);
  Submitted again;
  again.record.job.set_name(kJob);
  EXPECT_TRUE(absl::IsAlreadyExists(Ask(again)));
}

TEST_F(CoreTest, BadDataFailsTheJobAndDropsIt) {
  Submit();
  Failure failure;
  failure.set_kind(Failure::USER_ERROR);
  failure.set_message("train.jsonl line 3: not JSON");
  failure.add_violations()->set_line(3);
  Do(Validated{kJob, failure, 0});
  EXPECT_EQ(State(), Job::FAILED);
  EXPECT_EQ(Stored().failure().violations(0).line(), 3);
  EXPECT_EQ(Stored().end_time().seconds(), 1'000'000);
  EXPECT_EQ(core_.Find(kJob), nullptr);
  EXPECT_TRUE(absl::IsNotFound(Ask(CancelRequested{kJob})));
}

TEST_F(CoreTest, AQueuedJobSaysWhyItWaits) {
  Queue();
  EXPECT_EQ(State(), Job::QUEUED);
  EXPECT_EQ(Stored().reason_code(), Job::NO_WORKER);
  // One event for the change of state, with the reason that the same step found.
  ASSERT_EQ(events_.size(), 2u);
  EXPECT_EQ(events_[1].state().reason_code(), Job::NO_WORKER);
  EXPECT_EQ(events_[1].state().reason(), "no worker is connected");
  ASSERT_EQ(core_.Queue().size(), 1u);
  EXPECT_EQ(core_.Queue()[0]->job.name(), kJob);
}

TEST_F(CoreTest, AnUnchangedReasonIsNotStoredAgain) {
  Connect(1);
  Queue("jobs/1");
  Queue("jobs/2");
  EXPECT_EQ(Stored("jobs/2").reason_code(), Job::DEVICES_BUSY);
  Queue("jobs/3");
  EXPECT_EQ(Count<Persist>(), 1);
  EXPECT_EQ(State("jobs/3"), Job::QUEUED);
}

TEST_F(CoreTest, TheEstimateFillsInTheMemoryThatTheSpecLeftOpen) {
  Submit();
  Do(Validated{kJob, std::nullopt, 123});
  EXPECT_EQ(Stored().spec().resources().memory_bytes(), 123);
}

TEST_F(CoreTest, CancelEndsAJobThatIsOnNoWorkerAtOnce) {
  Submit();
  EXPECT_TRUE(Ask(CancelRequested{kJob}).ok());
  EXPECT_EQ(Count<StopValidation>(), 1);
  EXPECT_EQ(State(), Job::CANCELLED);
  Do(Validated{kJob, std::nullopt, 0});
  EXPECT_TRUE(last_.empty());

  Queue("jobs/2");
  EXPECT_TRUE(Ask(CancelRequested{"jobs/2"}).ok());
  EXPECT_EQ(State("jobs/2"), Job::CANCELLED);
  EXPECT_TRUE(core_.Queue().empty());
}

TEST_F(CoreTest, CancelOfARunningJobKillsAndWaitsForTheAgent) {
  Run();
  EXPECT_TRUE(Ask(CancelRequested{kJob}).ok());
  ASSERT_EQ(Sent(1).size(), 1u);
  EXPECT_EQ(Sent(1)[0].signal().signal(), AttemptSignal::KILL);
  EXPECT_EQ(State(), Job::RUNNING);
  EXPECT_EQ(Stored().reason_code(), Job::STOPPING);
  EXPECT_TRUE(Ask(CancelRequested{kJob}).ok());
  EXPECT_TRUE(last_.empty());
  EXPECT_TRUE(absl::IsFailedPrecondition(Ask(PauseRequested{kJob})));
  EXPECT_TRUE(absl::IsFailedPrecondition(Ask(ResumeRequested{kJob})));
  Ended(1, 1, AttemptEnded::FAILED, 0);
  EXPECT_EQ(State(), Job::CANCELLED);
  EXPECT_EQ(Stored().stop_request(), Job::STOP_NONE);
}

TEST_F(CoreTest, CancelOfAJobOnALostWorkerWaitsForTheFence) {
  Run();
  Do(AgentDisconnected{1});
  EXPECT_TRUE(Ask(CancelRequested{kJob}).ok());
  Pass(absl::Seconds(14));
  EXPECT_EQ(State(), Job::RUNNING);
  Pass(absl::Seconds(2));
  EXPECT_EQ(State(), Job::CANCELLED);
}

TEST_F(CoreTest, PauseAndResumeOfARunningJob) {
  Run();
  EXPECT_TRUE(Ask(PauseRequested{kJob}).ok());
  ASSERT_EQ(Sent(1).size(), 1u);
  EXPECT_EQ(Sent(1)[0].signal().signal(), AttemptSignal::CHECKPOINT_AND_STOP);
  EXPECT_TRUE(Ask(PauseRequested{kJob}).ok());
  EXPECT_TRUE(last_.empty());
  Ended(1, 1, AttemptEnded::STOPPED, 0);
  EXPECT_EQ(State(), Job::PAUSED);
  EXPECT_EQ(Stored().reason_code(), Job::PAUSED_BY_USER);
  EXPECT_EQ(Stored().restarts(), 0);
  EXPECT_TRUE(Ask(ResumeRequested{kJob}).ok());
  EXPECT_EQ(State(), Job::STARTING);
  EXPECT_EQ(Stored().attempt(), 2);
  EXPECT_TRUE(Ask(ResumeRequested{kJob}).ok());
  EXPECT_TRUE(last_.empty());
}

TEST_F(CoreTest, PauseIsRememberedThroughValidation) {
  Connect(1);
  Submit();
  EXPECT_TRUE(Ask(PauseRequested{kJob}).ok());
  EXPECT_EQ(State(), Job::VALIDATING);
  Do(Validated{kJob, std::nullopt, 0});
  EXPECT_EQ(State(), Job::PAUSED);
}

TEST_F(CoreTest, ResumeDuringAPauseQueuesTheJobAgain) {
  Run();
  Do(PauseRequested{kJob});
  EXPECT_TRUE(Ask(ResumeRequested{kJob}).ok());
  Ended(1, 1, AttemptEnded::STOPPED, 0);
  EXPECT_EQ(State(), Job::STARTING);
  EXPECT_EQ(Stored().attempt(), 2);
}

TEST_F(CoreTest, AFloodOfSubmissionsDoesNotAskTheSchedulerEachTime) {
  class Counting : public scheduler::Scheduler {
   public:
    scheduler::Decisions Decide(const scheduler::Snapshot& snapshot) const override {
      ++calls;
      return scheduler::FifoScheduler().Decide(snapshot);
    }
    mutable int calls = 0;
  };
  Counting counting;
  Core core(options_, &counting);
  for (int i = 0; i < 2000; ++i) {
    Submitted event;
    event.record.job.set_name(absl::StrCat("jobs/", i));
    core.Step(event, now_);
    core.Step(Validated{event.record.job.name(), std::nullopt, 0}, now_);
  }
  EXPECT_LT(counting.calls, 300);
  const int calls = counting.calls;
  ASSERT_LT(core.NextWake(), now_ + absl::Seconds(1));
  core.Step(Tick{}, core.NextWake());
  EXPECT_EQ(counting.calls, calls + 1);
  EXPECT_EQ(core.Queue().back()->job.reason_code(), Job::NO_WORKER);
  EXPECT_EQ(core.NextWake(), absl::InfiniteFuture());
}

TEST_F(CoreTest, KnowsWhichFilesAreInUse) {
  Submitted event;
  event.record.job.set_name(kJob);
  event.record.files.emplace_back().set_name("files/x");
  Do(event);
  EXPECT_TRUE(core_.UsesFile("files/x"));
  EXPECT_FALSE(core_.UsesFile("files/y"));
  Do(CancelRequested{kJob});
  EXPECT_FALSE(core_.UsesFile("files/x"));
}

}  // namespace
}  // namespace lemo::coordinator
