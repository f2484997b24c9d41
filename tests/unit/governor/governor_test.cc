#include "worker/train/governor/governor.h"

#include "gtest/gtest.h"

namespace lemo::train {
namespace {

// Nine shares of rows, each with 4 sizes of passes and 4 ways of storing.
Ladder MakeLadder() {
  LadderOptions options{
      .storage = {{planner::Stored::kAll, false}}, .rows_max = 8, .keep = 1, .min_keep = 0.5};
  options.choices = {{{10, 4}, {30, 2}, {60, 1}, {100, 0}}};
  return Ladder(options);
}

TEST(Governor, TakesTheFirstThatFits) {
  const Ladder ladder = MakeLadder();
  const Governor governor(ladder);
  const auto need = [](int64_t rung) { return 100 - rung; };
  EXPECT_EQ(governor.FirstFit(0, 1000, need), 0);
  EXPECT_EQ(governor.FirstFit(0, 100, need), 0);
  EXPECT_EQ(governor.FirstFit(0, 99, need), 1);
  EXPECT_EQ(governor.FirstFit(5, 99, need), 5);
  EXPECT_EQ(governor.FirstFit(0, -1000, need), ladder.size());
  // A rung that needs more than the one before it is passed over.
  const auto uneven = [](int64_t rung) { return rung == 2 ? 200 : 100 - rung; };
  EXPECT_EQ(governor.FirstFit(0, 98, uneven), 3);
}

TEST(Governor, GoesDownAtOnceAndBackWhenItHasBeenCalm) {
  const Ladder ladder = MakeLadder();
  Governor governor(ladder);
  const auto step = [&governor](int64_t fitting, int64_t budget = 100) {
    const int64_t rung = governor.Propose(fitting, budget);
    governor.Take(rung, budget);
    return rung;
  };
  EXPECT_EQ(step(0), 0);
  EXPECT_EQ(step(3), 3);
  EXPECT_EQ(step(5), 5);
  for (int i = 1; i < Governor::kCalmSteps; ++i) EXPECT_EQ(step(i % 3), 5) << i;
  EXPECT_EQ(step(1), 2);  // which would have done for all of them
  // One that needs it again begins the count anew.
  for (int i = 1; i < Governor::kCalmSteps; ++i) EXPECT_EQ(step(0), 2);
  EXPECT_EQ(step(2), 2);
  for (int i = 1; i < Governor::kCalmSteps; ++i) EXPECT_EQ(step(0), 2);
  EXPECT_EQ(step(0), 0);
}

TEST(Governor, ARaisedBudgetIsUsedAtOnce) {
  const Ladder ladder = MakeLadder();
  Governor governor(ladder);
  governor.Take(7, 100);
  EXPECT_EQ(governor.Propose(2, 101), 2);
  governor.Take(2, 101);
  EXPECT_EQ(governor.Propose(0, 90), 2);  // a lowered one gives no reason to go back
}

TEST(Governor, RowsAreNotLeftOutForLongerThanNeeded) {
  const Ladder ladder = MakeLadder();
  Governor governor(ladder);
  const int64_t fewer_rows = ladder.storages() * ladder.micros();
  ASSERT_GT(ladder.keep_of(fewer_rows), 0);
  governor.Take(fewer_rows, 100);
  EXPECT_EQ(governor.Propose(fewer_rows - 1, 100), fewer_rows - 1);
}

}  // namespace
}  // namespace lemo::train
