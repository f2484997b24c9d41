// Shares and thresholds by layer, from losses as a model would tell them (lemo-spec section 9).
#include "worker/train/tokens/allocation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace lemo::train {
namespace {

double Mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

TEST(LossRises, LieOnLinesBetweenWhatWasMeasured) {
  const LossRises rises{{0.2, 0.6}, {{1.0, 0.5}}};
  EXPECT_DOUBLE_EQ(rises.At(0, 0.1), 1.0);
  EXPECT_DOUBLE_EQ(rises.At(0, 0.2), 1.0);
  EXPECT_DOUBLE_EQ(rises.At(0, 0.4), 0.75);
  EXPECT_DOUBLE_EQ(rises.At(0, 0.6), 0.5);
  EXPECT_DOUBLE_EQ(rises.At(0, 0.8), 0.25);
  EXPECT_DOUBLE_EQ(rises.At(0, 1.0), 0.0);
}

TEST(AllocateShares, TakeFromTheLayersThatMindLeast) {
  // The second layer minds a tenth as much as the first, the third not at all.
  const LossRises rises{{0.2, 0.4, 0.6, 0.8},
                        {{0.8, 0.6, 0.4, 0.2}, {0.08, 0.06, 0.04, 0.02}, {0, 0, 0, 0}}};
  const std::vector<double> most = AllocateShares(rises, 0.9);
  EXPECT_DOUBLE_EQ(most[0], 1);
  EXPECT_DOUBLE_EQ(most[1], 1);
  EXPECT_NEAR(most[2], 0.7, 1e-12);
  const std::vector<double> half = AllocateShares(rises, 0.5);
  EXPECT_DOUBLE_EQ(half[0], 1);
  EXPECT_NEAR(half[1], 0.3, 1e-12);
  EXPECT_NEAR(half[2], 0.2, 1e-12);
}

TEST(AllocateShares, ALayerThatMindsTheLastBitOnlyGivesTheRest) {
  // Down to 0.6 the first layer costs nothing, below it more than the second.
  const LossRises rises{{0.2, 0.6}, {{1.0, 0.0}, {0.4, 0.2}}};
  const std::vector<double> keep = AllocateShares(rises, 0.5);
  EXPECT_NEAR(keep[0], 0.6, 1e-12);
  EXPECT_NEAR(keep[1], 0.4, 1e-12);
}

TEST(AllocateShares, HaveTheMeanThatWasAskedForAndNoLessThanWasMeasured) {
  const LossRises rises{{0.2, 0.5}, {{0.3, 0.1}, {-0.1, 0.2}, {0.5, 0.4}, {0.1, 0.1}}};
  for (const double mean : {1.0, 0.97, 0.63, 0.5, 0.21, 0.2}) {
    const std::vector<double> keep = AllocateShares(rises, mean);
    EXPECT_NEAR(Mean(keep), mean, 1e-9) << mean;
    EXPECT_GE(*std::min_element(keep.begin(), keep.end()), 0.2 - 1e-12) << mean;
    EXPECT_LE(*std::max_element(keep.begin(), keep.end()), 1.0) << mean;
  }
  EXPECT_EQ(AllocateShares(rises, 0.1), std::vector<double>(4, 0.1));
}

// Blocks of a layer that pass a threshold, of scores that are even in [0, 1], and a loss that
// minds what layer 0 leaves out `weight` times as much as what layer 1 does.
ThresholdTrial EvenScores(const std::vector<double>& thresholds, double weight) {
  ThresholdTrial trial;
  for (const double t : thresholds) trial.kept.push_back(std::clamp(1 - t, 0.1, 1.0));
  trial.loss = 2 + weight * std::pow(1 - trial.kept[0], 2) + std::pow(1 - trial.kept[1], 2);
  return trial;
}

TEST(TuneThresholds, ComeNearTheMeanAndSpareTheLayerThatMinds) {
  int passes = 0;
  const auto tuned =
      TuneThresholds({0.5, 0.5}, {0.05, 0.05}, 0.55, [&](const std::vector<double>& thresholds) {
        ++passes;
        return std::optional(EvenScores(thresholds, 3));
      });
  ASSERT_TRUE(tuned);
  EXPECT_NEAR(tuned->trial.MeanKept(), 0.55, 0.03);
  EXPECT_GT(tuned->trial.kept[0], tuned->trial.kept[1]);
  EXPECT_EQ(tuned->trial.loss, EvenScores(tuned->values, 3).loss);
  // Eight prices, each of three sweeps over two layers with two sides, and one pass at the end.
  EXPECT_EQ(passes, 8 * (3 * 2 * 2 + 1));
}

TEST(TuneThresholds, NeverMoveFurtherThanThreeReaches) {
  const auto tuned =
      TuneThresholds({0.5, 0.5}, {0.02, 0.05}, 0.1, [](const std::vector<double>& thresholds) {
        return std::optional(EvenScores(thresholds, 1));
      });
  ASSERT_TRUE(tuned);
  EXPECT_LE(tuned->values[0], 0.56 + 1e-12);
  EXPECT_LE(tuned->values[1], 0.65 + 1e-12);
}

TEST(TuneThresholds, GiveUpWithATrial) {
  int passes = 0;
  EXPECT_FALSE(TuneThresholds({0.5}, {0.1}, 0.5, [&](const std::vector<double>&) {
    return ++passes < 4 ? std::optional(ThresholdTrial{1.0, {0.5}}) : std::nullopt;
  }));
  EXPECT_EQ(passes, 4);
}

}  // namespace
}  // namespace lemo::train
