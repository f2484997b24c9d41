#include "worker/train/loop/stragglers.h"

#include <gtest/gtest.h>

namespace lemo::train {
namespace {

// The first of so many equal steps in which a rank is named, counted from 1; 0 for none.
int NamedAt(StragglerWatch* watch, const std::vector<double>& busy, int steps, int* rank) {
  int named = 0;
  for (int i = 1; i <= steps; ++i) {
    if (const auto slow = watch->Add(busy)) {
      if (named == 0) named = i;
      *rank = slow->rank;
    }
  }
  return named;
}

TEST(Stragglers, NamesTheSlowRankOnce) {
  StragglerWatch watch;
  int rank = -1;
  EXPECT_EQ(NamedAt(&watch, {1, 1.2, 1.6, 0.9}, 8, &rank), 8);
  EXPECT_EQ(rank, 2);
  EXPECT_EQ(NamedAt(&watch, {1, 1.2, 1.6, 0.9}, 20, &rank), 0);
}

TEST(Stragglers, OfTwoRanksTheOtherIsTheMeasure) {
  StragglerWatch watch;
  int rank = -1;
  EXPECT_EQ(NamedAt(&watch, {1.5, 1}, 8, &rank), 8);
  EXPECT_EQ(rank, 0);
}

TEST(Stragglers, OneSlowStepNamesNobody) {
  StragglerWatch watch;
  int rank = -1;
  EXPECT_EQ(NamedAt(&watch, {1, 1}, 8, &rank), 0);
  EXPECT_FALSE(watch.Add({4, 1}).has_value());
}

TEST(Stragglers, NamesItAgainAfterItHadRecovered) {
  StragglerWatch watch;
  int rank = -1;
  EXPECT_GT(NamedAt(&watch, {1, 2}, 10, &rank), 0);
  EXPECT_EQ(NamedAt(&watch, {1, 1}, 20, &rank), 0);
  EXPECT_GT(NamedAt(&watch, {1, 2}, 20, &rank), 0);
}

}  // namespace
}  // namespace lemo::train
