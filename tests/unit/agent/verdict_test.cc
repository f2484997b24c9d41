#include "worker/agent/verdict.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <string.h>

#include <cerrno>

namespace lemo::agent {
namespace {

using lemo::v1::AttemptEnded;
using lemo::v1::Failure;
using testing::HasSubstr;

constexpr int Left(int code) { return code << 8; }

TEST(Judge, SuccessIsSuccessWhateverWasAsked) {
  EXPECT_EQ(Judge({.status = Left(0)}).outcome(), AttemptEnded::SUCCEEDED);
  EXPECT_EQ(
      Judge({.status = Left(0), .asked_to_stop = true, .failure = SystemError("late")}).outcome(),
      AttemptEnded::SUCCEEDED);
}

TEST(Judge, ASignalThatWasAskedForIsAStop) {
  for (int status : {SIGKILL + 0, SIGTERM + 0, Left(128 + SIGTERM), Left(128 + SIGINT)}) {
    EXPECT_EQ(Judge({.status = status, .asked_to_stop = true}).outcome(), AttemptEnded::STOPPED);
    const AttemptEnded unasked = Judge({.status = status});
    EXPECT_EQ(unasked.outcome(), AttemptEnded::FAILED);
    EXPECT_EQ(unasked.failure().kind(), Failure::SYSTEM_ERROR);
    EXPECT_THAT(unasked.failure().message(), HasSubstr("SIG"));
  }
}

TEST(Judge, AFaultStaysOneThoughAStopWasAsked) {
  EXPECT_EQ(Judge({.status = Left(2), .asked_to_stop = true}).failure().kind(),
            Failure::USER_ERROR);
}

TEST(Judge, TheAgentsReasonIsTheFailure) {
  Failure limit;
  limit.set_kind(Failure::LIMIT_EXCEEDED);
  const AttemptEnded ended =
      Judge({.status = SIGKILL, .asked_to_stop = true, .failure = limit, .log_tail = "tail"});
  EXPECT_EQ(ended.outcome(), AttemptEnded::FAILED);
  EXPECT_EQ(ended.failure().kind(), Failure::LIMIT_EXCEEDED);
  EXPECT_EQ(ended.failure().log_tail(), "tail");
}

TEST(Judge, TakesTheRanksOwnWords) {
  lemo::v1::ErrorEvent error;
  error.set_message("two faults");
  error.set_advice("mend them");
  error.add_violations()->set_field("train.steps");
  const Failure failure = Judge({.status = Left(2), .error = error}).failure();
  EXPECT_EQ(failure.message(), "two faults");
  EXPECT_EQ(failure.advice(), "mend them");
  EXPECT_EQ(failure.violations(0).field(), "train.steps");
  EXPECT_EQ(Judge({.status = Left(3), .error = error}).failure().kind(), Failure::OUT_OF_MEMORY);
  EXPECT_EQ(Judge({.status = Left(4), .error = error}).failure().kind(), Failure::SYSTEM_ERROR);
  EXPECT_THAT(Judge({.status = Left(1)}).failure().message(), HasSubstr("code 1"));
}

TEST(Judge, OfSeveralRanksTheFirstThatFailedIsNamed) {
  lemo::v1::ErrorEvent error;
  error.set_message("the words of rank 0");
  const AttemptEnded other =
      Judge({.status = Left(2), .rank = 3, .ranks = 4, .error = error, .log_tail = "tail"});
  EXPECT_EQ(other.failure().rank(), 3);
  EXPECT_EQ(other.failure().kind(), Failure::USER_ERROR);
  EXPECT_EQ(other.failure().message(), "rank 3 left with code 2 and gave no reason");
  EXPECT_EQ(other.failure().log_tail(), "tail");
  const AttemptEnded killed = Judge({.status = SIGKILL, .rank = 1, .ranks = 4});
  EXPECT_THAT(killed.failure().message(), HasSubstr("rank 1 was ended by SIGKILL"));
  const AttemptEnded first = Judge({.status = Left(2), .rank = 0, .ranks = 4, .error = error});
  EXPECT_EQ(first.failure().message(), "the words of rank 0");
}

// A rank that fails tells the others why, and rank 0 tells us.
TEST(Judge, RankZerosWordsCountForTheRankThatTheyAreAbout) {
  lemo::v1::ErrorEvent error;
  error.set_message("rank 2: no memory for the loss");
  error.set_exit_code(3);
  error.set_advice("take less");
  // The code that was seen is that of whoever happened to leave first.
  const AttemptEnded ended =
      Judge({.status = Left(4), .rank = 2, .ranks = 4, .error = error, .error_is_cause = true});
  EXPECT_EQ(ended.failure().kind(), Failure::OUT_OF_MEMORY);
  EXPECT_EQ(ended.failure().rank(), 2);
  EXPECT_EQ(ended.failure().message(), "rank 2: no memory for the loss");
  EXPECT_EQ(ended.failure().advice(), "take less");
  // One that was killed told nobody: what rank 0 says of it is what it saw.
  const AttemptEnded killed = Judge({.status = SIGKILL, .rank = 1, .ranks = 4, .error = error});
  EXPECT_THAT(killed.failure().message(), HasSubstr("rank 1 was ended by SIGKILL"));
}

TEST(RankNamedIn, IsTheOneAtTheBeginning) {
  EXPECT_EQ(RankNamedIn("rank 3: no memory"), 3);
  EXPECT_EQ(RankNamedIn("rank 12: rank 3: no memory"), 12);
  for (const char* other : {"", "no memory", "rank 3 waited 300 s at a sum", "rank x: no",
                            "rank -1: no", "the rank 3: no"}) {
    EXPECT_EQ(RankNamedIn(other), std::nullopt) << other;
  }
}

TEST(Judge, AFullDiskIsTheMachinesFault) {
  lemo::v1::ErrorEvent error;
  error.set_message("cannot save the checkpoint of step 30: cannot write it: " +
                    std::string(::strerror(ENOSPC)));
  EXPECT_EQ(Judge({.status = Left(2), .error = error}).failure().kind(), Failure::SYSTEM_ERROR);
}

}  // namespace
}  // namespace lemo::agent
