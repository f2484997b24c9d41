// The cost model against lemo-spec section 11 and against the products that the tape makes.
#include "planner/cost_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace lemo::planner {
namespace {

constexpr ModelShape kLlama2 = {.hidden = 4096,
                                .heads = 32,
                                .kv_heads = 32,
                                .head_dim = 128,
                                .intermediate = 11008,
                                .vocabulary = 32000};
constexpr ModelShape kLlama3 = {.hidden = 4096,
                                .heads = 32,
                                .kv_heads = 8,
                                .head_dim = 128,
                                .intermediate = 14336,
                                .vocabulary = 128256};

LayerRows Rows(double share, int64_t length) {
  const auto rows = static_cast<int64_t>(share * static_cast<double>(length));
  return {.attention = rows, .mlp = rows, .pairs = CausalPairs(rows)};
}

// Section 11 as it is written: forward FLOP of a token and layer.
double SpecForward(const ModelShape& shape, double length, double r_a, double r_m) {
  const auto h = static_cast<double>(shape.hidden), i = static_cast<double>(shape.intermediate);
  const double grouping = static_cast<double>(shape.kv_heads) / static_cast<double>(shape.heads);
  return 2 * h * h * (2 + 2 * grouping) * r_a + (shape.gated_mlp ? 6 : 4) * h * i * r_m +
         2 * length * h * r_a * r_a;
}

TEST(CostModel, ForwardIsTheFormulaOfSection11) {
  constexpr int64_t kLength = 65536;
  ModelShape relu = kLlama2;
  relu.gated_mlp = false;
  for (const ModelShape& shape : {kLlama2, kLlama3, relu}) {
    for (const double r_a : {1.0, 0.5, 0.25}) {
      for (const double r_m : {1.0, 0.5}) {
        LayerRows rows = Rows(r_a, kLength);
        rows.mlp = Rows(r_m, kLength).mlp;
        const double forward = LayerWork(shape, {}, Stored::kInput, rows).forward.total();
        // The diagonal of the causal triangle is the only difference.
        EXPECT_NEAR(forward / kLength / SpecForward(shape, kLength, r_a, r_m), 1.0, 1e-4);
      }
    }
  }
}

// The paper's form: 40 % of the rows in 16 of 32 layers, attention alone, whole layers replayed.
TEST(CostModel, SpeedUpsOfSection11) {
  const std::vector<int64_t> lengths = {8192, 16384, 32768, 65536};
  const std::vector<double> speed_ups = {1.19, 1.26, 1.35, 1.45};
  for (size_t i = 0; i < lengths.size(); ++i) {
    const auto seconds = [](const LayerRows& rows) {
      const StepWork work = LayerWork(kLlama2, {}, Stored::kInput, rows);
      return 2 * work.forward.total() + work.backward.total();
    };
    LayerRows sparse = Rows(0.4, lengths[i]);
    sparse.mlp = lengths[i];
    const double dense = 32 * seconds(Rows(1, lengths[i]));
    EXPECT_NEAR(dense / (16 * seconds(Rows(1, lengths[i])) + 16 * seconds(sparse)), speed_ups[i],
                0.015)
        << lengths[i];
  }
}

// What backward computes again, in units of one matrix of 8 x 8 over one row.
TEST(CostModel, ReplaysWhatTheTapeReplays) {
  const ModelShape square = {
      .hidden = 8, .heads = 2, .kv_heads = 2, .head_dim = 4, .intermediate = 8, .vocabulary = 100};
  constexpr double kUnit = 2 * 8 * 8;
  const LayerRows shared = {.attention = 3, .mlp = 3, .pairs = 6};
  LayerRows separate = shared;
  separate.separate = true;
  separate.mlp = 5;
  const auto replay = [&](Stored stored, const LayerRows& rows) {
    return LayerWork(square, {}, stored, rows).replay;
  };
  // q, k, v and o of three rows; gate and up.
  EXPECT_EQ(replay(Stored::kInput, shared).products, (4 + 2) * 3 * kUnit);
  EXPECT_EQ(replay(Stored::kInput, shared).attention, 4.0 * 8 * 6);
  EXPECT_EQ(replay(Stored::kAttentionOut, shared).products, (4 + 2) * 3 * kUnit);
  EXPECT_EQ(replay(Stored::kAttentionOut, shared).attention, 0);
  EXPECT_EQ(replay(Stored::kMlp, shared).products, 2 * 3 * kUnit);
  EXPECT_EQ(replay(Stored::kAll, shared).total(), 0);
  // The stream before the MLP is kept, so o is not projected again.
  EXPECT_EQ(replay(Stored::kAttentionOut, separate).products, (3 * 3 + 2 * 5) * kUnit);
}

TEST(CostModel, BackwardOfFrozenAndOfTrainedMatrices) {
  const LayerRows rows = Rows(1, 64);
  const StepWork frozen = LayerWork(kLlama3, {}, Stored::kAll, rows);
  const StepWork full = LayerWork(kLlama3, {.full = true}, Stored::kAll, rows);
  EXPECT_EQ(frozen.backward.products, frozen.forward.products);
  EXPECT_EQ(full.backward.products, 2 * full.forward.products);
  EXPECT_EQ(full.backward.attention, 2.5 * full.forward.attention);
  EXPECT_EQ(full.forward.total(), frozen.forward.total());

  // Adapters of rank 2 on q, k, v, o: each has 2 * (in + out) elements, and trains.
  const StepWork adapted = LayerWork(kLlama3, {.attention_rank = 2}, Stored::kAll, rows);
  const double elements = 2.0 * (2 * (4096 + 4096) + 2 * (4096 + 1024));
  EXPECT_EQ(adapted.forward.products - frozen.forward.products, 2 * 64 * elements);
  EXPECT_EQ(adapted.backward.products - frozen.backward.products, 2 * 2 * 64 * elements);
}

TEST(CostModel, HeadIsMadeOnce) {
  const StepWork frozen = HeadWork(kLlama3, {}, 10);
  EXPECT_EQ(frozen.forward.total(), 2.0 * 10 * 4096 * 128256);
  EXPECT_EQ(frozen.replay.total(), 0);
  EXPECT_EQ(frozen.backward.total(), frozen.forward.total());
  EXPECT_EQ(HeadWork(kLlama3, {.full = true}, 10).backward.total(), 2 * frozen.forward.total());
}

TEST(CostModel, RatesAreFoundFromStepsOfTwoLengths) {
  const Rates truth = {.products = 3e12, .attention = 4e11};
  std::vector<MeasuredStep> steps;
  for (const int64_t length : {1024, 4096, 16384}) {
    const Work work = LayerWork(kLlama3, {}, Stored::kAttentionOut, Rows(1, length)).Total();
    steps.push_back({work, Seconds(work, truth)});
  }
  const auto rates = CalibrateRates(steps);
  ASSERT_TRUE(rates.has_value());
  EXPECT_NEAR(rates->products / truth.products, 1, 1e-9);
  EXPECT_NEAR(rates->attention / truth.attention, 1, 1e-9);
}

TEST(CostModel, OneRateWhereTwoCannotBeTold) {
  const std::vector<MeasuredStep> one = {{{.products = 30, .attention = 10}, 4}};
  const auto rates = CalibrateRates(one);
  ASSERT_TRUE(rates.has_value());
  EXPECT_DOUBLE_EQ(rates->products, 10);
  EXPECT_DOUBLE_EQ(rates->attention, 10);
  // Twice the attention in less time: no pair of positive rates explains that.
  const std::vector<MeasuredStep> odd = {one[0], {{.products = 30, .attention = 200}, 3}};
  const auto common = CalibrateRates(odd);
  ASSERT_TRUE(common.has_value());
  EXPECT_EQ(common->products, common->attention);
  EXPECT_GT(common->products, 0);
}

TEST(CostModel, NothingToCalibrateWith) {
  EXPECT_FALSE(CalibrateRates({}).has_value());
  const std::vector<MeasuredStep> no_time = {{{.products = 1, .attention = 1}, 0}};
  EXPECT_FALSE(CalibrateRates(no_time).has_value());
  const std::vector<MeasuredStep> no_work = {{{}, 1}};
  EXPECT_FALSE(CalibrateRates(no_work).has_value());
}

}  // namespace
}  // namespace lemo::planner
