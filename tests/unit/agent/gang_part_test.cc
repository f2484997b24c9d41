#include "worker/agent/gang_part.h"

#include <gtest/gtest.h>

#include <thread>

#include "tests/unit/agent/scratch.h"

namespace lemo::agent {
namespace {

using absl::StatusCode;

constexpr auto kNow = std::chrono::milliseconds(0);
constexpr auto kLong = std::chrono::seconds(20);

class GangPartTest : public testing::Test {
 protected:
  GangPartTest()
      : part_(std::make_shared<GangPart>("secret", AttemptJournal(scratch_.path(), 3), /*first=*/2,
                                         /*count=*/2, &waker_)) {}

  // What a call answers while the loop starts the daemon with `outcome`.
  absl::Status Start(const absl::Status& outcome) {
    absl::Status answer;
    std::thread call([&] { answer = part_->StartDaemon({"-mca", "a", "b"}, kLong); });
    std::optional<std::vector<std::string>> arguments;
    while (!(arguments = part_->TakeStart())) std::this_thread::yield();
    EXPECT_EQ(arguments->size(), 3u);
    part_->Started(outcome);
    call.join();
    return answer;
  }

  const Scratch scratch_;
  Waker waker_;
  std::shared_ptr<GangPart> part_;
};

TEST_F(GangPartTest, AdmitsItsTokenOnly) {
  EXPECT_TRUE(part_->Admits("secret"));
  for (const char* token : {"", "secre", "secret ", "Secret"}) EXPECT_FALSE(part_->Admits(token));
  // One that was given no token is open to nobody.
  const GangPart without("", AttemptJournal(scratch_.path(), 3), 0, 1, &waker_);
  EXPECT_FALSE(without.Admits(""));
}

TEST_F(GangPartTest, IsReadyWhenTheLoopSaysSo) {
  EXPECT_EQ(*part_->AwaitReady(kNow), false);
  EXPECT_EQ(part_->StartDaemon({}, kLong).code(), StatusCode::kFailedPrecondition);
  absl::StatusOr<bool> ready = false;
  std::thread call([&] { ready = part_->AwaitReady(kLong); });
  part_->SetReady();
  call.join();
  EXPECT_TRUE(ready.ok() && *ready);
}

TEST_F(GangPartTest, StartsOneDaemon) {
  part_->SetReady();
  EXPECT_TRUE(Start(absl::OkStatus()).ok());
  EXPECT_EQ(part_->StartDaemon({}, kLong).code(), StatusCode::kAlreadyExists);
  EXPECT_FALSE(part_->AwaitDaemon(kNow));
  part_->EndRanks();
  EXPECT_TRUE(part_->end_asked());
  EXPECT_FALSE(part_->AwaitDaemon(kNow));  // asked for is not done
  part_->Ended(9);
  EXPECT_EQ(part_->AwaitDaemon(kLong), 9);
}

TEST_F(GangPartTest, WhatHindersTheStartIsTold) {
  part_->SetReady();
  EXPECT_EQ(Start(absl::NotFoundError("no orted")).code(), StatusCode::kNotFound);
  EXPECT_TRUE(part_->AwaitDaemon(kNow));
}

TEST_F(GangPartTest, NothingStartsAfterTheEndWasAskedFor) {
  part_->SetReady();
  part_->EndRanks();
  EXPECT_TRUE(part_->AwaitDaemon(kNow));
  EXPECT_EQ(part_->StartDaemon({}, kLong).code(), StatusCode::kAborted);
  EXPECT_EQ(part_->AwaitReady(kLong).status().code(), StatusCode::kAborted);
  EXPECT_FALSE(part_->TakeStart());
}

TEST_F(GangPartTest, ALoopThatDoesNotAnswerStartsNothingLater) {
  part_->SetReady();
  EXPECT_EQ(part_->StartDaemon({}, kNow).code(), StatusCode::kDeadlineExceeded);
  EXPECT_FALSE(part_->TakeStart());
}

TEST_F(GangPartTest, ClosingAnswersWhoWaits) {
  absl::StatusOr<bool> ready = false;
  std::thread call([&] { ready = part_->AwaitReady(kLong); });
  part_->Close();
  call.join();
  EXPECT_EQ(ready.status().code(), StatusCode::kAborted);
}

TEST_F(GangPartTest, TellsHowItsRanksEnded) {
  scratch_.Write("rank-1-3.end",
                 R"({"boot_ns": 5, "for_others": false, "status": 9})");  // no rank of it
  scratch_.Write("rank-2-3.end", R"({"boot_ns": 5, "for_others": false, "status": 768})");
  scratch_.Write("rank-2-3.log", "no memory left");
  scratch_.Write("rank-3-3.end", R"({"boot_ns": 5, "for_others": true, "status": 9})");
  scratch_.Write("rank-3-3.log", "nothing of interest");
  const lemo::v1::EndRanksResponse ends = part_->RankEnds();
  ASSERT_EQ(ends.ranks_size(), 2);
  EXPECT_EQ(ends.ranks(0).rank(), 2);
  EXPECT_EQ(ends.ranks(0).status(), 768);
  EXPECT_EQ(ends.ranks(0).log_tail(), "no memory left");
  EXPECT_GT(ends.ranks(0).seconds_ago(), 0);
  EXPECT_TRUE(ends.ranks(1).for_others());
  EXPECT_EQ(ends.ranks(1).log_tail(), "");
}

TEST_F(GangPartTest, PartsAreFoundByAttemptAndToken) {
  GangParts parts;
  lemo::v1::GangKey key;
  key.mutable_id()->set_job("jobs/a");
  key.mutable_id()->set_attempt(3);
  key.set_token("secret");
  EXPECT_EQ(parts.Find(key).status().code(), StatusCode::kNotFound);
  parts.Add(key.id(), part_);
  EXPECT_EQ(*parts.Find(key), part_);
  lemo::v1::GangKey other = key;
  other.set_token("guess");
  EXPECT_EQ(parts.Find(other).status().code(), StatusCode::kPermissionDenied);
  other = key;
  other.mutable_id()->set_attempt(4);
  EXPECT_EQ(parts.Find(other).status().code(), StatusCode::kNotFound);
  parts.Remove(key.id());
  EXPECT_EQ(parts.Find(key).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(part_->AwaitReady(kLong).status().code(), StatusCode::kAborted);
}

}  // namespace
}  // namespace lemo::agent
