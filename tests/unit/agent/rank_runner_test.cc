#include "worker/agent/rank_runner.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>

#include "tests/unit/agent/scratch.h"

namespace lemo::agent {
namespace {

TEST(FirstToFail, IsTheEarliestOfThoseThatFailedByThemselves) {
  const RankEnd good{.status = 0, .boot_ns = 1};
  const RankEnd killed{.status = 9, .boot_ns = 2, .for_others = true};
  const RankEnd later{.status = 256, .boot_ns = 4};
  const RankEnd earlier{.status = 9, .boot_ns = 3};
  EXPECT_EQ(FirstToFail({good, later, killed, std::nullopt, earlier}), 4);
  EXPECT_EQ(FirstToFail({earlier, later}), 0);
  EXPECT_EQ(FirstToFail({good, killed, std::nullopt}), std::nullopt);
  EXPECT_EQ(FirstToFail({}), std::nullopt);
}

TEST(ReadRankEnd, WhatIsNotUnderstoodIsNoEnd) {
  const Scratch scratch;
  EXPECT_FALSE(ReadRankEnd(scratch.path() / "none"));
  scratch.Write("half", R"({"status": 9, "boot)");
  EXPECT_FALSE(ReadRankEnd(scratch.path() / "half"));
  scratch.Write("whole", R"({"boot_ns": 77, "for_others": true, "status": 9})");
  const auto end = ReadRankEnd(scratch.path() / "whole");
  ASSERT_TRUE(end);
  EXPECT_EQ(end->status, 9);
  EXPECT_EQ(end->boot_ns, 77);
  EXPECT_TRUE(end->for_others);
}

TEST(RunRank, RefusesToStandAlone) {
  ::unsetenv("OMPI_COMM_WORLD_RANK");
  sigset_t mask;  // which it changes, as a process of its own may
  ::sigprocmask(SIG_BLOCK, nullptr, &mask);
  EXPECT_EQ(RunRank({"/tmp", "1", "--", "/bin/true"}), 4);
  EXPECT_EQ(RunRank({"/tmp", "x", "--", "/bin/true"}), 4);
  EXPECT_EQ(RunRank({}), 4);
  ::sigprocmask(SIG_SETMASK, &mask, nullptr);
}

}  // namespace
}  // namespace lemo::agent
