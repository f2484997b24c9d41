// One factor from earlier runs, and what it does to a request's offers.
#include "planner/offers/correction.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "planner/offers/offers.h"

namespace lemo::planner {
namespace {

TimeCorrection Of(const std::vector<double>& ratios) { return CorrectionOf(ratios); }

TEST(Correction, IsTheGeometricMean) {
  EXPECT_NEAR(Of({1.2, 1.2, 1.2}).ratio, 1.2, 1e-12);
  EXPECT_EQ(Of({1.2, 1.2, 1.2}).runs, 3);
  // Twice too slow and twice too fast cancel.
  EXPECT_NEAR(Of({2, 0.5}).ratio, 1, 1e-12);
}

TEST(Correction, OneRunIsNotEnough) {
  EXPECT_EQ(Of({}).ratio, 1);
  EXPECT_EQ(Of({3}).ratio, 1);
  EXPECT_EQ(Of({3}).runs, 1);
}

TEST(Correction, StaysWithinBoundsAndPassesOverWhatIsNoRatio) {
  EXPECT_EQ(Of({100, 100}).ratio, kMostRatio);
  EXPECT_EQ(Of({0.001, 0.001}).ratio, 1 / kMostRatio);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const TimeCorrection mixed = Of({nan, 1.5, 0, -1, std::numeric_limits<double>::infinity(), 1.5});
  EXPECT_NEAR(mixed.ratio, 1.5, 1e-12);
  EXPECT_EQ(mixed.runs, 2);
}

TEST(Correction, OldRunsCountNoMore) {
  std::vector<double> ratios(kMostRuns, 1.1);
  ratios.insert(ratios.end(), 10, 3.0);
  EXPECT_NEAR(Of(ratios).ratio, 1.1, 1e-12);
  EXPECT_EQ(Of(ratios).runs, kMostRuns);
}

OfferRequest Request() {
  OfferRequest request;
  request.shape = {.hidden = 256,
                   .heads = 4,
                   .kv_heads = 4,
                   .head_dim = 64,
                   .intermediate = 704,
                   .vocabulary = 4096};
  request.shape.layers = 4;
  request.tuning.adapters = {8, 8, 8, 8, 0, 0, 0};
  request.data = {.documents = {{1024, 10}}, .packing = false};
  request.window = 1024;
  request.batch_sequences = 2;
  request.steps = 10;
  request.device = {.type = "cpu", .compute = {1e11, 5e10}};
  return request;
}

// Times are scaled, which run is which stays.
TEST(Correction, ScalesTimesAndLeavesIdsAndBytes) {
  OfferRequest request = Request();
  const Offers before = MakeOffers(request);
  request.time_ratios = {{.ranks = 2, .ratio = 3}, {.ranks = 1, .ratio = 1.25}};
  const Offers after = MakeOffers(request);
  ASSERT_EQ(after.front.size(), before.front.size());
  for (size_t i = 0; i < after.front.size(); ++i) {
    const Offer &was = before.front[i], &is = after.front[i];
    EXPECT_EQ(is.id, was.id);
    EXPECT_EQ(is.memory.high.total, was.memory.high.total);
    EXPECT_EQ(is.step.Foretold(), was.step.Foretold());
    EXPECT_NEAR(is.step.Total() / was.step.Total(), 1.25, 1e-12);
    EXPECT_NEAR(is.finish_seconds / was.finish_seconds, 1.25, 1e-12);
    EXPECT_NEAR(is.device_seconds / was.device_seconds, 1.25, 1e-12);
    EXPECT_NEAR(was.tokens_per_second / is.tokens_per_second, 1.25, 1e-12);
  }
}

// A bound of time holds for what is expected, not for what was foretold first.
TEST(Correction, BoundsAreOfCorrectedTimes) {
  OfferRequest request = Request();
  request.bounds.finish_seconds_max = 1.1 * MakeOffers(request).front.back().finish_seconds;
  EXPECT_FALSE(MakeOffers(request).front.empty());
  request.time_ratios = {{.ratio = 2}};
  EXPECT_TRUE(MakeOffers(request).front.empty());
}

TEST(Correction, ARunIsPricedAsTheOfferThatItIs) {
  const OfferRequest request = Request();
  for (const Offer& offer : MakeOffers(request).front) {
    const Offer run{.window = offer.window,
                    .micro_batch_sequences = offer.micro_batch_sequences,
                    .storage = offer.storage};
    const Offer priced = PriceRun(request, run);
    EXPECT_EQ(priced.id, offer.id);
    EXPECT_EQ(priced.step.Total(), offer.step.Total());
    EXPECT_EQ(priced.memory.high.total, offer.memory.high.total);
  }
}

TEST(Correction, AClassHasRoundedSizes) {
  OfferRequest request = Request();
  EXPECT_EQ(ShapeClassOf(request), "width 256, window 1024, adapters");
  request.shape.hidden = 288;
  request.window = 1400;
  EXPECT_EQ(ShapeClassOf(request), "width 256, window 1024, adapters");
  request.shape.hidden = 4096;
  request.tuning.full = true;
  EXPECT_EQ(ShapeClassOf(request), "width 4096, window 1024, full");
}

}  // namespace
}  // namespace lemo::planner
