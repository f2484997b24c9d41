// What a job allowed itself.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/integration/agent/harness.h"

namespace lemo::agent {
namespace {

using lemo::v1::AttemptEnded;
using lemo::v1::Failure;
using testing::HasSubstr;

class Limits : public AgentTest {
 protected:
  Failure RunOver(const lemo::v1::Assignment& assignment) {
    coordinator_.Assign(assignment);
    if (!coordinator_.WaitForEnd({assignment.id().job(), 1})) return {};
    const KnownAttempt attempt = coordinator_.Get({assignment.id().job(), 1});
    EXPECT_EQ(attempt.ended->outcome(), AttemptEnded::FAILED);
    // It may have been ended before it could tell its number.
    const pid_t rank = PidIn(attempt, "pid");
    EXPECT_TRUE(rank == 0 || ::kill(rank, 0) == -1);
    return attempt.ended->failure();
  }
};

TEST_F(Limits, TimeCountsFromEarlierAttemptsOn) {
  StartAgent();
  lemo::v1::Assignment assignment = MakeAssignment("a", "pid\nstay\n");
  assignment.mutable_limits()->set_run_seconds(100);
  assignment.set_run_seconds_used(99.8);
  const Failure failure = RunOver(assignment);
  EXPECT_EQ(failure.kind(), Failure::LIMIT_EXCEEDED);
  EXPECT_THAT(failure.message(), HasSubstr("limits.run_seconds: ran for 100."));
}

TEST_F(Limits, DiskOfTheJobsDirectory) {
  StartAgent();
  lemo::v1::Assignment assignment = MakeAssignment("a", "bytes 5000000\npid\nstay\n");
  assignment.mutable_limits()->set_disk_bytes(4'000'000);
  const Failure failure = RunOver(assignment);
  EXPECT_EQ(failure.kind(), Failure::LIMIT_EXCEEDED);
  EXPECT_THAT(failure.message(), HasSubstr("limits.disk_bytes"));
  EXPECT_THAT(failure.message(), HasSubstr("4000000 are allowed"));
}

TEST_F(Limits, MemoryOfTheRanks) {
  StartAgent();
  lemo::v1::Assignment assignment = MakeAssignment("a", "pid\nstay\n");
  assignment.mutable_limits()->set_host_memory_bytes(1000);
  const Failure failure = RunOver(assignment);
  EXPECT_EQ(failure.kind(), Failure::LIMIT_EXCEEDED);
  EXPECT_THAT(failure.message(), HasSubstr("limits.host_memory_bytes"));
}

}  // namespace
}  // namespace lemo::agent
