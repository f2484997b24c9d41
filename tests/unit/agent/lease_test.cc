#include "worker/agent/lease.h"

#include <gtest/gtest.h>

namespace lemo::agent {
namespace {

using std::chrono::seconds;

constexpr Instant kStart = Instant(seconds(1000));

TEST(Lease, HoldsNothingBeforeAGrant) {
  const Lease lease;
  EXPECT_FALSE(lease.granted());
  EXPECT_EQ(lease.StopAt(), kNever);
  EXPECT_EQ(lease.KillAt(), kNever);
}

TEST(Lease, CountsFromTheSendingOfWhatWasAnswered) {
  Lease lease;
  lease.Grant(kStart, seconds(30));
  EXPECT_EQ(lease.StopAt(), kStart + seconds(20));
  EXPECT_EQ(lease.KillAt(), kStart + seconds(27));
  lease.Sent(1, kStart + seconds(5));
  lease.Sent(2, kStart + seconds(10));
  EXPECT_EQ(lease.StopAt(), kStart + seconds(20));
  lease.Renewed(1);  // whenever it comes
  EXPECT_EQ(lease.StopAt(), kStart + seconds(25));
  lease.Renewed(2);
  EXPECT_EQ(lease.StopAt(), kStart + seconds(30));
}

TEST(Lease, AnswersOutOfPlaceChangeNothing) {
  Lease lease;
  lease.Grant(kStart, seconds(30));
  lease.Renewed(7);
  lease.Sent(1, kStart + seconds(5));
  lease.Sent(2, kStart + seconds(10));
  lease.Renewed(2);
  lease.Renewed(1);
  lease.Renewed(2);
  lease.Renewed(3);
  EXPECT_EQ(lease.renewed(), kStart + seconds(10));
}

TEST(Lease, ANewGrantForgetsHeartbeatsOfTheFormerSession) {
  Lease lease;
  lease.Grant(kStart, seconds(30));
  lease.Sent(1, kStart + seconds(50));
  lease.Grant(kStart + seconds(40), seconds(30));
  lease.Renewed(1);
  EXPECT_EQ(lease.renewed(), kStart + seconds(40));
}

TEST(Lease, UnansweredHeartbeatsDoNotPileUp) {
  Lease lease;
  lease.Grant(kStart, seconds(30));
  for (int i = 1; i <= 1000; ++i) lease.Sent(i, kStart + seconds(i));
  lease.Renewed(1);  // long dropped
  EXPECT_EQ(lease.renewed(), kStart);
  lease.Renewed(1000);
  EXPECT_EQ(lease.renewed(), kStart + seconds(1000));
}

}  // namespace
}  // namespace lemo::agent
