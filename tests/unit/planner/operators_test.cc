// Operators of a step: their amounts, their rates, and the seconds that come of both.
#include "planner/operators.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "planner/offers/step_time.h"
#include "planner/offers/workload.h"

namespace lemo::planner {
namespace {

constexpr Stored kStored[] = {Stored::kInput, Stored::kAttentionOut, Stored::kMlp, Stored::kAll};

ModelShape Llama() {
  ModelShape shape{.hidden = 256,
                   .heads = 8,
                   .kv_heads = 2,
                   .head_dim = 32,
                   .intermediate = 704,
                   .vocabulary = 4096};
  shape.layers = 4;
  return shape;
}

double AmountOf(const std::vector<OperatorWork>& work, Operator op) {
  double amount = 0;
  for (const OperatorWork& part : work) amount += part.op == op ? part.amount : 0;
  return amount;
}

double ProductsOf(const std::vector<OperatorWork>& work) {
  return AmountOf(work, Operator::kProducts);
}

double AttentionOf(const std::vector<OperatorWork>& work) {
  return AmountOf(work, Operator::kAttention) + AmountOf(work, Operator::kAttentionBackward);
}

TEST(OperatorRates, NamesAreFoundAgain) {
  for (int op = 0; op < kOperators; ++op) {
    EXPECT_EQ(OperatorNamed(OperatorName(static_cast<Operator>(op))), static_cast<Operator>(op));
  }
  EXPECT_EQ(OperatorNamed("convolution"), std::nullopt);
}

TEST(OperatorRates, AreInterpolatedBetweenSizesAndKeptBeyondThem) {
  OperatorRates rates;
  EXPECT_TRUE(rates.empty());
  EXPECT_EQ(rates.At(Operator::kProducts, 100), 0);
  rates.Set(Operator::kProducts, 0, {{10, 1e9}, {1000, 1e11}});
  EXPECT_FALSE(rates.empty());
  EXPECT_NEAR(rates.At(Operator::kProducts, 10) / 1e9, 1, 1e-12);
  EXPECT_NEAR(rates.At(Operator::kProducts, 100) / 1e10, 1, 1e-12);
  EXPECT_NEAR(rates.At(Operator::kProducts, 1) / 1e9, 1, 1e-12);
  EXPECT_NEAR(rates.At(Operator::kProducts, 1e6) / 1e11, 1, 1e-12);
  EXPECT_EQ(rates.At(Operator::kNorm, 100), 0);
  rates.Set(Operator::kProducts, 0, {});
  EXPECT_TRUE(rates.empty());
}

TEST(OperatorRates, AndBetweenWidths) {
  OperatorRates rates;
  rates.Set(Operator::kAttention, 128, {{100, 4e9}});
  rates.Set(Operator::kAttention, 32, {{100, 1e9}});
  EXPECT_NEAR(rates.At(Operator::kAttention, 100, 64) / 2e9, 1, 1e-12);
  EXPECT_NEAR(rates.At(Operator::kAttention, 100, 16) / 1e9, 1, 1e-12);
  EXPECT_NEAR(rates.At(Operator::kAttention, 100, 512) / 4e9, 1, 1e-12);
  // One of them measured anew.
  rates.Set(Operator::kAttention, 32, {{100, 3e9}});
  EXPECT_NEAR(rates.At(Operator::kAttention, 100, 32) / 3e9, 1, 1e-12);
}

// FLOP are those of the cost model, which was compared with the trainer's.
TEST(LayerOperators, HaveTheWorkOfTheCostModel) {
  ModelShape opt = Llama();
  opt.gated_mlp = false;
  opt.layer_norm = true;
  opt.position_rows = 2048;
  const LayerRows dense{.attention = 1024, .mlp = 1024, .pairs = CausalPairs(1024)};
  const LayerRows sparse{
      .attention = 512, .mlp = 1024, .pairs = CausalPairs(512), .separate = true, .indexed = true};
  for (const ModelShape& shape : {Llama(), opt}) {
    for (const Tuning& tuning : {Tuning{.full = true}, Tuning{.attention_rank = 8}}) {
      for (const LayerRows& rows : {dense, sparse}) {
        const LayerOperators layer = OperatorsOf(shape, tuning, rows, {.passes = 4});
        for (const Stored stored : kStored) {
          const StepWork work = LayerWork(shape, tuning, stored, rows);
          const int i = static_cast<int>(stored);
          EXPECT_NEAR(ProductsOf(layer.forward) / work.forward.products, 1, 1e-12);
          EXPECT_NEAR(ProductsOf(layer.backward) / work.backward.products, 1, 1e-12);
          EXPECT_NEAR(ProductsOf(layer.replay[i]), work.replay.products,
                      1e-12 * work.forward.products);
          EXPECT_DOUBLE_EQ(AttentionOf(layer.forward), work.forward.attention);
          EXPECT_DOUBLE_EQ(AttentionOf(layer.backward), work.backward.attention);
          EXPECT_DOUBLE_EQ(AttentionOf(layer.replay[i]), work.replay.attention);
          EXPECT_EQ(ProductsOf(layer.kept[i]), 0);
        }
      }
    }
    const std::vector<OperatorWork> head = HeadOperators(shape, {.full = true}, 1000, 1024, {});
    EXPECT_NEAR(ProductsOf(head) / HeadWork(shape, {.full = true}, 1000).Total().products, 1,
                1e-12);
    EXPECT_EQ(AmountOf(head, Operator::kLoss), 1000.0 * 4096);
  }
}

TEST(LayerOperators, WhatIsKeptIsCopiedAndNotMadeAgain) {
  const LayerRows rows{.attention = 1024, .mlp = 1024, .pairs = CausalPairs(1024)};
  const LayerOperators layer = OperatorsOf(Llama(), {}, rows, {});
  const auto copies = [&](Stored stored) {
    return AmountOf(layer.kept[static_cast<int>(stored)], Operator::kCopy);
  };
  EXPECT_EQ(copies(Stored::kInput), 1024.0 * 256);
  EXPECT_EQ(copies(Stored::kAttentionOut), 1024.0 * 2 * 256);
  // q, two narrow ones, and the stream before the MLP.
  EXPECT_EQ(copies(Stored::kMlp), 1024.0 * (3 * 256 + 2 * 64 + 256));
  EXPECT_EQ(copies(Stored::kAll), copies(Stored::kMlp) + 1024.0 * 2 * 704);
  EXPECT_TRUE(layer.replay[static_cast<int>(Stored::kAll)].empty());
  EXPECT_FALSE(layer.replay[static_cast<int>(Stored::kMlp)].empty());
}

TEST(LayerOperators, RowsThatAreSomeOfTheStreamAreGathered) {
  LayerRows rows{.attention = 512, .mlp = 512, .pairs = CausalPairs(512)};
  EXPECT_EQ(AmountOf(OperatorsOf(Llama(), {}, rows, {}).forward, Operator::kGather), 0);
  rows.indexed = true;
  EXPECT_EQ(AmountOf(OperatorsOf(Llama(), {}, rows, {}).forward, Operator::kGather),
            2 * 512.0 * 256);
}

// Backward of a norm of heads reads their projections: whatever is kept, q and k are made again.
TEST(LayerOperators, NormsOfHeadsWantTheirProjectionsAgain) {
  ModelShape qwen = Llama();
  qwen.qk_norm = true;
  const LayerRows rows{.attention = 1024, .mlp = 1024, .pairs = CausalPairs(1024)};
  const LayerOperators plain = OperatorsOf(Llama(), {}, rows, {});
  const LayerOperators normed = OperatorsOf(qwen, {}, rows, {});
  const double q_and_k = 2 * 1024.0 * 256 * (256 + 64);
  EXPECT_NEAR(ProductsOf(normed.backward) - ProductsOf(plain.backward), q_and_k, 1);
  EXPECT_NEAR(ProductsOf(plain.replay[0]) - ProductsOf(normed.replay[0]), q_and_k, 1);
}

TEST(LayerOperators, SizesAreOfOneCall) {
  const LayerRows rows{.attention = 8192, .mlp = 8192, .pairs = 4 * CausalPairs(2048)};
  const LayerOperators layer = OperatorsOf(Llama(), {}, rows, {.passes = 4});
  for (const OperatorWork& work : layer.forward) {
    if (work.op == Operator::kRotation) {
      EXPECT_EQ(work.size, 2048.0 * (256 + 64));
    }
    // Rows go through the MLP a tile at a time.
    if (work.op == Operator::kActivation) {
      EXPECT_EQ(work.size, 1024.0 * 704);
    }
    if (work.op == Operator::kAttention) {
      EXPECT_NEAR(work.size, 2048, 1e-9);
      EXPECT_EQ(work.width, 32);
    }
    if (work.op == Operator::kProducts) {
      EXPECT_LE(work.size, 256);
    }
  }
}

TEST(LayerOperators, RanksOfATensorGroupDivideProductsAndNotNorms) {
  const LayerRows rows{.attention = 1024, .mlp = 1024, .pairs = CausalPairs(1024)};
  const LayerOperators one = OperatorsOf(Llama(), {.attention_rank = 8}, rows, {});
  const LayerOperators two = OperatorsOf(Llama(), {.attention_rank = 8}, rows, {.tensor_ranks = 2});
  EXPECT_NEAR(ProductsOf(two.forward) / ProductsOf(one.forward), 0.5, 1e-12);
  EXPECT_EQ(AmountOf(two.forward, Operator::kActivation),
            AmountOf(one.forward, Operator::kActivation) / 2);
  EXPECT_EQ(AmountOf(two.forward, Operator::kNorm), AmountOf(one.forward, Operator::kNorm));
}

OfferRequest Request() {
  OfferRequest request;
  request.shape = Llama();
  request.tuning.adapters = {8, 8, 8, 8, 0, 0, 0};
  request.data = {.documents = {{1024, 8}}, .packing = false};
  request.window = 1024;
  request.batch_sequences = 2;
  request.device = {.type = "cpu", .compute = {1e11, 5e10}};
  for (int op = 0; op < kOperators; ++op) {
    request.device.operators.Set(static_cast<Operator>(op), 0, {{1, 1e9 * (op + 1)}});
  }
  request.device.layer_seconds = 1e-3;
  request.device.step_seconds = 5e-3;
  return request;
}

// What a person is shown adds up to what is offered.
TEST(StepOperators, AddUpToTheStep) {
  OfferRequest request = Request();
  request.device.links = {{.ranks = 2, .latency_seconds = 1e-4, .bytes_per_second = 1e9}};
  const std::vector<LayerStorage> storage = {
      {Stored::kInput}, {Stored::kAttentionOut}, {Stored::kMlp}, {Stored::kAll}};
  const Workload load = WorkloadOf(request, 1024, nullptr);
  for (const RankSplit& split :
       {RankSplit{}, RankSplit{.tensor_ranks = 2}, RankSplit{.data_ranks = 2}}) {
    const StepClock clock(request, load, split);
    const StepSeconds step = clock.Step(storage, 2);
    double seconds = 0;
    for (const OperatorSeconds& of : clock.Operators(storage, 2)) seconds += of.seconds;
    EXPECT_NEAR((seconds + step.overhead) / step.Foretold(), 1, 1e-12);
    EXPECT_NEAR(step.overhead, 2 * 4 * 1e-3 + 5e-3, 1e-12);
    EXPECT_EQ(step.communication > 0, split.tensor_ranks * split.data_ranks > 1);
  }
}

// Each operator's rate moves its own part of the step.
TEST(StepOperators, EachRatePricesItsOwnWork) {
  const OfferRequest request = Request();
  const std::vector<LayerStorage> storage(4, {Stored::kAttentionOut});
  const Workload load = WorkloadOf(request, 1024, nullptr);
  std::map<std::string, double> before;
  for (const OperatorSeconds& of : StepClock(request, load, {}).Operators(storage, 2)) {
    before[of.name] = of.seconds;
    EXPECT_GT(of.seconds, 0) << of.name;
    EXPECT_GT(of.amount, 0) << of.name;
  }
  EXPECT_EQ(before.size(), size_t{kOperators});
  for (const auto& [name, seconds] : before) {
    OfferRequest faster = request;
    const Operator op = *OperatorNamed(name);
    faster.device.operators.Set(op, 0, {{1, 2e9 * (static_cast<int>(op) + 1)}});
    const StepClock clock(faster, load, {});
    const StepClock slow(request, load, {});
    EXPECT_NEAR(slow.Step(storage, 2).Total() - clock.Step(storage, 2).Total(), seconds / 2,
                1e-9 * slow.Step(storage, 2).Total())
        << name;
  }
}

// Two ranks of one machine that have its memory together are each slower than one alone.
TEST(StepOperators, RanksOfOneMachineHaveTheirOwnRates) {
  OfferRequest request = Request();
  SharedRates shared{.ranks = 2, .compute = {5e10, 2e10}, .layer_seconds = 2e-3};
  for (int op = 0; op < kOperators; ++op) {
    shared.operators.Set(static_cast<Operator>(op), 0, {{1, 5e8 * (op + 1)}});
  }
  request.device.shared = {shared};
  const std::vector<LayerStorage> storage(4, {Stored::kAll});
  const Workload load = WorkloadOf(request, 1024, nullptr);
  const StepSeconds one = StepClock(request, load, {}).Step(storage, 1);
  const StepSeconds two = StepClock(request, load, {.data_ranks = 2}).Step(storage, 1);
  // Half of the sequences at half of the rate.
  EXPECT_NEAR(two.forward / one.forward, 1, 1e-12);
  EXPECT_NEAR(two.overhead, 4 * 2e-3, 1e-12);
}

TEST(Links, TheNearestNumberOfRanksStandsForOthers) {
  DeviceRates device;
  EXPECT_EQ(device.LinkOf(2).bytes_per_second, 0);
  device.links = {{.ranks = 2, .bytes_per_second = 2}, {.ranks = 8, .bytes_per_second = 8}};
  EXPECT_EQ(device.LinkOf(2).bytes_per_second, 2);
  EXPECT_EQ(device.LinkOf(4).bytes_per_second, 2);
  EXPECT_EQ(device.LinkOf(8).bytes_per_second, 8);
  EXPECT_EQ(device.LinkOf(64).bytes_per_second, 8);
  device.links = {{.ranks = 8, .bytes_per_second = 8}};
  EXPECT_EQ(device.LinkOf(2).bytes_per_second, 8);
}

// Sums of many small micro-batches cost their latency.
TEST(Links, EverySumWaits) {
  OfferRequest request = Request();
  request.device.links = {{.ranks = 2, .latency_seconds = 1e-3, .bytes_per_second = 1e12}};
  const std::vector<LayerStorage> storage(4, {Stored::kAll});
  const StepClock clock(request, WorkloadOf(request, 1024, nullptr), {.tensor_ranks = 2});
  const double two = clock.Step(storage, 2).communication;
  const double four = clock.Step(storage, 4).communication;
  // Four a layer and four of the head, in each micro-batch more.
  EXPECT_NEAR(four - two, 2 * (4 * 4 + 4) * 1e-3, 1e-9);
}

}  // namespace
}  // namespace lemo::planner
