// What agents tell of attempts.
#include <cmath>
#include <limits>

#include "tests/unit/core/harness.h"

namespace lemo::coordinator {
namespace {

TEST_F(CoreTest, APlacedJobGetsItsAssignmentAfterItIsStored) {
  Connect(1);
  Queue();
  ASSERT_GE(last_.size(), 2u);
  EXPECT_TRUE(std::holds_alternative<Persist>(last_[0]));
  ASSERT_EQ(Sent(1).size(), 1u);
  const lemo::v1::Assignment assignment = Sent(1)[0].assign();
  EXPECT_EQ(assignment.id().attempt(), 1);
  EXPECT_THAT(assignment.devices(), ::testing::ElementsAre(0));
  EXPECT_EQ(assignment.ranks(), 1);
  EXPECT_EQ(State(), Job::STARTING);
  EXPECT_EQ(Stored().worker(), kWorker);
  EXPECT_EQ(Stored().start_time().seconds(), 1'000'000);
}

TEST_F(CoreTest, EventsAreTakenOnceAndInOrder) {
  Run();
  EXPECT_TRUE(std::isnan(Stored().progress().eval_loss()));
  Steps(1, 1, 1, 2);
  ASSERT_EQ(Count<Persist>(), 1);
  EXPECT_EQ(Sent(1)[0].acknowledged().through_sequence(), 2);
  EXPECT_EQ(Stored().progress().step(), 2);
  const size_t events = events_.size();

  Steps(1, 1, 1, 3);  // two known ones, one new
  EXPECT_EQ(events_.size(), events + 1);
  EXPECT_EQ(events_.back().run().step().step(), 3);
  EXPECT_EQ(events_.back().sequence(), Stored().last_sequence());
  EXPECT_EQ(Sent(1)[0].acknowledged().through_sequence(), 3);

  Steps(1, 1, 2, 3);  // nothing new: acknowledged, not stored
  EXPECT_EQ(Count<Persist>(), 0);
  EXPECT_EQ(Sent(1)[0].acknowledged().through_sequence(), 3);

  Steps(1, 1, 5, 6);  // a gap
  EXPECT_TRUE(last_.empty());
}

TEST_F(CoreTest, SuccessNeedsAllEventsAResultAndFiles) {
  Run();
  Steps(1, 1, 1, 2);
  Ended(1, 1, AttemptEnded::SUCCEEDED, 3);
  EXPECT_TRUE(last_.empty());  // the third event is under way
  Result(1, 1, 3);
  Ended(1, 1, AttemptEnded::SUCCEEDED, 3);
  EXPECT_EQ(State(), Job::SUCCEEDED);
  EXPECT_EQ(Stored().result().steps(), 3);
  EXPECT_EQ(Stored().artifacts(0).path(), "adapter");
  ASSERT_EQ(Sent(1).size(), 1u);
  EXPECT_EQ(Sent(1)[0].forgotten().id().attempt(), 1);
  // Repeated, since the answer was lost.
  Ended(1, 1, AttemptEnded::SUCCEEDED, 3);
  EXPECT_EQ(Count<Persist>(), 0);
  EXPECT_TRUE(Sent(1)[0].has_forgotten());
}

TEST_F(CoreTest, SuccessWithoutAResultIsAFault) {
  Run();
  Ended(1, 1, AttemptEnded::SUCCEEDED, 0);
  EXPECT_EQ(State(), Job::QUEUED);
  EXPECT_EQ(Stored().reason_code(), Job::BACKING_OFF);
}

TEST_F(CoreTest, AnEarlierResultIsNoResult) {
  Run();
  Result(1, 1, 1);
  Ended(1, 1, AttemptEnded::FAILED, 1);
  EXPECT_FALSE(Stored().has_result());
  PassWithHeartbeats(1, absl::Seconds(2));
  ASSERT_EQ(Stored().attempt(), 2);
  Ended(1, 2, AttemptEnded::SUCCEEDED, 0);
  EXPECT_EQ(State(), Job::QUEUED);
}

TEST_F(CoreTest, FaultsRestartWithADoublingBackOffUpToTheLimit) {
  Run();
  for (int restart = 1; restart <= 5; ++restart) {
    Ended(1, restart, AttemptEnded::FAILED, 0);
    ASSERT_EQ(State(), Job::QUEUED);
    EXPECT_EQ(Stored().reason_code(), Job::BACKING_OFF);
    EXPECT_EQ(Stored().restarts(), restart);
    EXPECT_THAT(Stored().reason(), ::testing::HasSubstr("it broke"));
    EXPECT_EQ(stored_[kJob].not_before - now_, absl::Seconds(1 << (restart - 1)));
    PassWithHeartbeats(1, absl::Seconds(1 << (restart - 1)));
    ASSERT_EQ(State(), Job::STARTING) << restart;
    ASSERT_EQ(Stored().attempt(), restart + 1);
  }
  Ended(1, 6, AttemptEnded::FAILED, 0);
  EXPECT_EQ(State(), Job::FAILED);
  EXPECT_EQ(Stored().failure().kind(), Failure::SYSTEM_ERROR);
  EXPECT_EQ(Stored().failure().message(), "it broke (after 5 restarts)");
}

TEST_F(CoreTest, TheUsersFaultsAreNotRestarted) {
  for (Failure::Kind kind :
       {Failure::USER_ERROR, Failure::OUT_OF_MEMORY, Failure::LIMIT_EXCEEDED}) {
    core_ = Core(options_, &scheduler_);
    Run();
    Ended(1, 1, AttemptEnded::FAILED, 0, kind);
    EXPECT_EQ(State(), Job::FAILED);
    EXPECT_EQ(Stored().failure().kind(), kind);
    stored_.clear();
  }
}

TEST_F(CoreTest, AnEndWithFewerEventsThanStoredIsAFault) {
  Run();
  Steps(1, 1, 1, 3);
  Ended(1, 1, AttemptEnded::STOPPED, 1);
  EXPECT_EQ(Stored().reason_code(), Job::BACKING_OFF);
  EXPECT_EQ(Stored().restarts(), 1);
}

TEST_F(CoreTest, AnAgentThatStopsUnaskedGetsTheJobBackOnlyLater) {
  Run();
  Ended(1, 1, AttemptEnded::STOPPED, 0);
  EXPECT_EQ(State(), Job::QUEUED);
  EXPECT_EQ(Stored().restarts(), 0);
  PassWithHeartbeats(1, absl::Seconds(1));
  EXPECT_EQ(State(), Job::STARTING);
}

TEST_F(CoreTest, AbsurdRunTimesAreNotBelieved) {
  Run();
  int attempt = 0;
  for (double seconds : {std::numeric_limits<double>::infinity(), -1e300,
                         std::numeric_limits<double>::quiet_NaN(), 2.5}) {
    AgentMessage message;
    AttemptEnded& ended = *message.mutable_ended();
    *ended.mutable_id() = Id(++attempt);
    ended.set_outcome(AttemptEnded::FAILED);
    ended.set_run_seconds(seconds);
    Say(1, message);
    ASSERT_EQ(State(), Job::QUEUED);
    PassWithHeartbeats(1, absl::Seconds(10));
  }
  EXPECT_EQ(stored_[kJob].run_seconds_used, 2.5);
}

TEST_F(CoreTest, OtherAttemptsAreFencedOff) {
  Run();
  Ended(1, 1, AttemptEnded::FAILED, 0);
  PassWithHeartbeats(1, absl::Seconds(1));
  ASSERT_EQ(Stored().attempt(), 2);
  Steps(1, 1, 1, 4);
  EXPECT_EQ(Count<Persist>(), 0);
  ASSERT_EQ(Sent(1).size(), 2u);
  EXPECT_EQ(Sent(1)[0].signal().signal(), AttemptSignal::KILL);
  EXPECT_EQ(Sent(1)[0].signal().id().attempt(), 1);
  EXPECT_EQ(Sent(1)[1].acknowledged().through_sequence(), 4);
  Started(1, 1);
  EXPECT_EQ(Sent(1)[0].signal().signal(), AttemptSignal::KILL);
  Started(1, 3);
  EXPECT_EQ(Sent(1)[0].signal().id().attempt(), 3);
  Ended(1, 1, AttemptEnded::SUCCEEDED, 4);
  EXPECT_EQ(Count<Persist>(), 0);
  EXPECT_TRUE(Sent(1)[0].has_forgotten());
  EXPECT_EQ(State(), Job::STARTING);
}

TEST_F(CoreTest, AnotherWorkerCannotSpeakOfTheAttempt) {
  Run();
  Connect(2, {{kJob, 1}}, "workers/b");
  EXPECT_EQ(Sent(2)[0].welcome().attempts_size(), 0);
  Ended(2, 1, AttemptEnded::STOPPED, 0);
  EXPECT_EQ(State(), Job::RUNNING);
}

TEST_F(CoreTest, LogsOfCurrentAttemptsAreKept) {
  Run();
  AgentMessage message;
  *message.mutable_log()->mutable_id() = Id(1);
  message.mutable_log()->mutable_chunk()->set_data("text");
  message.mutable_log()->mutable_chunk()->set_attempt(77);
  Say(1, message);
  ASSERT_EQ(Count<AppendLog>(), 1);
  EXPECT_EQ(std::get<AppendLog>(last_[0]).chunk.attempt(), 1);
  message.mutable_log()->mutable_chunk()->set_rank(1);
  Say(1, message);
  EXPECT_TRUE(last_.empty());
  message.mutable_log()->mutable_chunk()->set_rank(0);
  *message.mutable_log()->mutable_id() = Id(2);
  Say(1, message);
  EXPECT_TRUE(last_.empty());
}

TEST_F(CoreTest, AbsurdNumbersDoNoHarm) {
  Run();
  for (int64_t first : {std::numeric_limits<int64_t>::min(), int64_t{-1}, int64_t{0},
                        std::numeric_limits<int64_t>::max()}) {
    for (int attempt : {-1, 0, 1, std::numeric_limits<int>::max()}) {
      for (int count : {0, 2}) {
        AgentMessage message;
        *message.mutable_events()->mutable_id() = Id(attempt);
        message.mutable_events()->set_first_sequence(first);
        for (int i = 0; i < count; ++i) message.mutable_events()->add_events();
        Say(1, message);
        EXPECT_EQ(Count<Persist>(), 0);
      }
    }
  }
  EXPECT_EQ(State(), Job::RUNNING);
}

}  // namespace
}  // namespace lemo::coordinator
