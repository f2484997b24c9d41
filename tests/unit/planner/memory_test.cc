// The memory model against published parameter counts, the table of design section 4 and sums by
// hand. Against runs: memory_grid in tests/golden/planner and bench/planner.
#include "planner/memory/memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "planner/memory/choice_bytes.h"
#include "planner/memory/kept_rows.h"
#include "planner/memory/layer_bytes.h"
#include "planner/memory/parameters.h"

namespace lemo::planner {
namespace {

using testing::ElementsAre;

ModelShape Llama3() {
  ModelShape shape{.hidden = 4096,
                   .heads = 32,
                   .kv_heads = 8,
                   .head_dim = 128,
                   .intermediate = 14336,
                   .vocabulary = 128256};
  shape.layers = 32;
  return shape;
}

MemoryOptions Dense(const ModelShape& shape, int64_t rows, Stored stored = Stored::kAttentionOut) {
  MemoryOptions options;
  options.shape = shape;
  options.tuning.adapters = {8, 8, 8, 8, 0, 0, 0};
  options.layers.assign(
      shape.layers,
      {.stored = stored, .stream = rows, .attention = rows, .mlp = rows, .longest = rows});
  options.batch_rows = options.rows_max = options.stream_rows = options.longest = rows;
  options.labelled = rows - 1;
  return options;
}

TEST(Parameters, AreThoseOfPublishedModels) {
  EXPECT_EQ(CountParameters(Llama3()), 8030261248);
  ModelShape qwen3{.hidden = 1024,
                   .heads = 16,
                   .kv_heads = 8,
                   .head_dim = 128,
                   .intermediate = 3072,
                   .vocabulary = 151936};
  qwen3.layers = 28;
  qwen3.qk_norm = qwen3.tied_embeddings = true;
  EXPECT_EQ(CountParameters(qwen3), 596049920);
  ModelShape opt{.hidden = 768,
                 .heads = 12,
                 .kv_heads = 12,
                 .head_dim = 64,
                 .intermediate = 3072,
                 .vocabulary = 50272,
                 .gated_mlp = false};
  opt.layers = 12;
  opt.position_rows = 2050;
  opt.layer_norm = opt.qkv_bias = opt.o_bias = opt.mlp_bias = opt.tied_embeddings = true;
  EXPECT_EQ(CountParameters(opt), 125239296);
}

TEST(Parameters, AdaptersHaveTheirRankTimesBothWidths) {
  // q and o: 4096 + 4096; k and v: 4096 + 1024. PEFT tells 6,815,744 for these targets at rank 8.
  EXPECT_EQ(CountTrainable(Llama3(), {.adapters = {8, 8, 8, 8, 0, 0, 0}}), 6815744);
}

TEST(Parameters, TensorRanksThatFit) {
  EXPECT_TRUE(TensorRanksFit(Llama3(), 8));
  EXPECT_TRUE(TensorRanksFit(Llama3(), 16));  // two ranks share a key head
  EXPECT_FALSE(TensorRanksFit(Llama3(), 3));
  EXPECT_FALSE(TensorRanksFit(Llama3(), 64));  // more than heads
  const ModelShape part = PartOf(Llama3(), 16);
  EXPECT_THAT((std::vector<int64_t>{part.heads, part.kv_heads, part.intermediate, part.vocabulary}),
              ElementsAre(2, 1, 896, 8016));
}

// Design section 4: bytes a token-layer at bf16.
TEST(SavedBytes, AreThoseOfTheDesign) {
  constexpr int64_t kRows = 1024;
  const auto per_row = [](Stored stored) {
    return SavedBytes(Llama3(), {.stored = stored, .attention = kRows, .mlp = kRows}, 2, false) /
           kRows;
  };
  EXPECT_EQ(per_row(Stored::kInput), 8192);                      // x
  EXPECT_EQ(per_row(Stored::kAttentionOut), 8192 + 8192 + 128);  // o, lse: 16.5 K
  EXPECT_EQ(per_row(Stored::kMlp), 16512 + 8192 + 2 * 2048 + 8192);
  EXPECT_EQ(per_row(Stored::kAll), 36992 + 2 * 28672);  // gate, up
}

TEST(SavedBytes, OfAReluTheSigns) {
  ModelShape shape = Llama3();
  shape.gated_mlp = false;
  const LayerMemory layer{.stored = Stored::kAll, .attention = 64, .mlp = 64};
  EXPECT_EQ(SavedBytes(shape, layer, 2, false), 64 * (36992 + 14336 / 8));
  EXPECT_EQ(SavedBytes(shape, layer, 2, true), 64 * (36992 + 28672));
}

TEST(SavedBytes, WhatASeparateMlpReadsIsKeptWhateverThePolicy) {
  const LayerMemory layer{.stored = Stored::kInput, .attention = 64, .mlp = 128, .separate = true};
  EXPECT_EQ(SavedBytes(Llama3(), layer, 2, false), (64 + 128) * 8192);
}

// One head, no adapters, one tile: few enough tensors to add up by hand.
TEST(LayerBytes, ForwardByHand) {
  LayerScene scene;
  scene.shape = {.hidden = 8,
                 .heads = 1,
                 .kv_heads = 1,
                 .head_dim = 8,
                 .intermediate = 1000,
                 .vocabulary = 16};
  scene.layer = {.stored = Stored::kAll, .stream = 10, .attention = 10, .mlp = 10, .longest = 10};
  // In the MLP's last product: normed rows, gate, up, activation, the result.
  EXPECT_EQ(ForwardLayerBytes(scene, true), 4 * 10 * (8 + 3 * 1000 + 8));
  // In backward, gate and up are in the arena; the activation's gradient and those of gate and up.
  // Alive are the norm's statistics. What the norm made is gone.
  EXPECT_EQ(BackwardLayerBytes(scene), 4 * 10 * (3 * 1000 + 1));
  scene.layer.stored = Stored::kMlp;
  EXPECT_EQ(BackwardLayerBytes(scene), 4 * 10 * (5 * 1000 + 1));
}

// Keys and values once more for every query head, and a tile of 512 keys a thread.
TEST(LayerBytes, PackedKeysAreBesideTheResultOfAttention) {
  const ModelShape shape{.hidden = 192,
                         .heads = 6,
                         .kv_heads = 2,
                         .head_dim = 32,
                         .intermediate = 64,
                         .vocabulary = 9};
  LayerScene scene{.shape = shape,
                   .layer = {.stream = 3707, .attention = 3707, .mlp = 3707, .longest = 3707},
                   .element_bytes = 2,
                   .threads = 2};
  const int64_t plain = ForwardLayerBytes(scene, /*keep=*/false);
  scene.packs_keys = true;
  EXPECT_EQ(ForwardLayerBytes(scene, /*keep=*/false),
            plain + 2 * 3707 * 192 * 2 + 2 * 512 * 32 * 2);
  // Nothing is packed of a few rows.
  scene.layer = {.stream = 63, .attention = 63, .mlp = 63, .longest = 63};
  const int64_t few = ForwardLayerBytes(scene, /*keep=*/false);
  scene.packs_keys = false;
  EXPECT_EQ(ForwardLayerBytes(scene, /*keep=*/false), few);
}

TEST(Forecast, CategoriesOfLoraInFloat32) {
  const MemoryForecast forecast = ForecastMemory(Dense(Llama3(), 512));
  EXPECT_EQ(forecast.expected.weights, 4 * int64_t{8030261248});
  EXPECT_EQ(forecast.high.base, forecast.expected.weights);
  // Masters, which are the values; gradients; two moments.
  EXPECT_EQ(forecast.expected.trainable, 16 * int64_t{6815744});
  EXPECT_EQ(forecast.expected.saved_activations, 512 * 4 * 4096 + 32 * 512 * (4 * 8192 + 4 * 32));
}

TEST(Forecast, ATypeOfItsOwnCostsValuesBesideMasters) {
  MemoryOptions options = Dense(Llama3(), 512);
  options.element_bytes = 2;
  EXPECT_EQ(ForecastMemory(options).expected.trainable, 18 * int64_t{6815744});
}

TEST(Forecast, FullTuningKeepsTheWeightsItStartedFrom) {
  MemoryOptions options = Dense(Llama3(), 512);
  options.tuning = {.full = true};
  const MemoryForecast forecast = ForecastMemory(options);
  EXPECT_EQ(forecast.expected.weights, 4 * int64_t{8030261248});
  EXPECT_EQ(forecast.high.base, 0) << "nobody else trains them";
  EXPECT_EQ(forecast.expected.trainable, 16 * int64_t{8030261248});
  // The norm of the largest gradient is taken in fp64.
  EXPECT_GE(forecast.expected.transient, int64_t{8} * 128256 * 4096);
}

TEST(Forecast, BoundsAreInOrderAndTheTotalIsOfOneMoment) {
  for (const Stored stored : {Stored::kInput, Stored::kAttentionOut, Stored::kMlp, Stored::kAll}) {
    MemoryOptions options = Dense(Llama3(), 2048, stored);
    options.checkpoints = true;
    options.evaluation = {.rows = 2048, .longest = 2048, .labelled = 2047};
    const MemoryForecast forecast = ForecastMemory(options);
    EXPECT_LE(forecast.low.total, forecast.expected.total);
    EXPECT_LT(forecast.expected.total, forecast.high.total);
    const CategoryBytes& bytes = forecast.expected;
    EXPECT_LE(bytes.total, bytes.weights + bytes.trainable + bytes.saved_activations +
                               bytes.transient + bytes.loss);
    int64_t highest = 0;
    for (const Moment& moment : forecast.moments) {
      highest = std::max(highest, moment.transient + moment.loss);
    }
    EXPECT_EQ(bytes.total, bytes.weights + bytes.trainable + bytes.saved_activations + highest);
  }
}

// MakeCheckpoint copies masters and moments under the default category.
TEST(Forecast, ASnapshotIsTransientBesideTheSteps) {
  MemoryOptions options = Dense(Llama3(), 512);
  options.publish_rows = 0;
  const int64_t without = ForecastMemory(options).expected.transient;
  options.checkpoints = true;
  const MemoryForecast forecast = ForecastMemory(options);
  EXPECT_EQ(forecast.expected.transient, without + 12 * int64_t{6815744});
  EXPECT_EQ(forecast.low.transient, without);
}

TEST(Forecast, RanksDivide) {
  MemoryOptions options = Dense(Llama3(), 512);
  options.tuning = {.full = true};
  options.data_ranks = 8;
  std::vector<int64_t> trainable;
  for (const Sharding sharding : {Sharding::kNone, Sharding::kOptimizer, Sharding::kGradients}) {
    options.sharding = sharding;
    trainable.push_back(ForecastMemory(options).expected.trainable);
  }
  EXPECT_GT(trainable[0], trainable[1]);
  EXPECT_GT(trainable[1], trainable[2]);
  // The tuner makes masters and gradients whole before they are divided: 8 bytes a parameter.
  options.sharding = Sharding::kParameters;
  EXPECT_GE(ForecastMemory(options).expected.trainable, 8 * int64_t{8030261248});

  MemoryOptions group = Dense(Llama3(), 512);
  group.tensor_ranks = 8;
  const CategoryBytes part = ForecastMemory(group).expected;
  const CategoryBytes whole = ForecastMemory(Dense(Llama3(), 512)).expected;
  EXPECT_LT(part.weights, whole.weights / 7);
  EXPECT_LT(part.saved_activations, whole.saved_activations);
  EXPECT_LT(part.transient, whole.transient);

  // With `input` nothing is kept but rows of the stream.
  group = Dense(Llama3(), 512, Stored::kInput);
  const int64_t all_rows = ForecastMemory(group).expected.saved_activations;
  group.tensor_ranks = 8;
  group.sequence = true;
  EXPECT_EQ(ForecastMemory(group).expected.saved_activations, all_rows / 8);
}

TEST(Forecast, MoreRowsNeverTakeLess) {
  for (const Stored stored : {Stored::kInput, Stored::kAttentionOut, Stored::kMlp, Stored::kAll}) {
    CategoryBytes before;
    for (int64_t rows = 64; rows <= 16384; rows *= 2) {
      const CategoryBytes bytes = ForecastMemory(Dense(Llama3(), rows, stored)).expected;
      EXPECT_GE(bytes.saved_activations, before.saved_activations);
      EXPECT_GE(bytes.transient, before.transient);
      EXPECT_GE(bytes.loss, before.loss);
      EXPECT_GT(bytes.total, before.total);
      before = bytes;
    }
  }
}

TEST(ChoiceBytes, ByHand) {
  using By = RowChooser::By;
  const ModelShape shape = Llama3();
  constexpr int64_t kRows = 1000;
  EXPECT_EQ(ChoiceBytes(shape, 2, {}, kRows), 0);
  EXPECT_EQ(ChoiceBytes(shape, 2, {.by = By::kNorm}, kRows), kRows * (4 + 4));
  // Rows by the networks' width in the compute type, and four fp32 numbers a row.
  const RowChooser predictor{.by = By::kPredictor, .first_width = 256};
  EXPECT_EQ(ChoiceBytes(shape, 2, predictor, kRows), kRows * (256 * 2 + 4 * 4));
  RowChooser own = predictor;
  own.own_stream = true;
  EXPECT_EQ(ChoiceBytes(shape, 2, own, kRows),
            ChoiceBytes(shape, 2, predictor, kRows) + kRows * shape.hidden * 2);
  // LayerNorm's mean and offsets do not wait for the pooling.
  ModelShape opt = shape;
  opt.layer_norm = true;
  EXPECT_GT(ChoiceBytes(opt, 2, predictor, kRows), ChoiceBytes(shape, 2, predictor, kRows));
}

TEST(Forecast, ChoosingRowsIsAMomentOfForwardAndItsNetworksAreWeights) {
  const MemoryOptions chance = Dense(Llama3(), 2048);
  MemoryOptions predictor = chance;
  predictor.chooser = {
      .by = RowChooser::By::kPredictor, .held_bytes = 5000, .first_width = 1 << 20};
  const MemoryForecast before = ForecastMemory(chance), after = ForecastMemory(predictor);
  EXPECT_EQ(after.expected.weights, before.expected.weights + 5000);
  EXPECT_EQ(after.high.base, before.high.base) << "each run has its own networks";
  EXPECT_GT(after.expected.transient, int64_t{4} * 2048 << 20);
  MemoryOptions table = chance;
  table.scored = {.rows = 2048, .longest = 2048};
  EXPECT_EQ(ForecastMemory(table).moments.front().name, "scores of blocks");
}

TEST(Forecast, LessonsTakeTheirStateAndAPassOfAllRows) {
  MemoryOptions knows = Dense(Llama3(), 2048, Stored::kInput);
  knows.chooser = {.by = RowChooser::By::kPredictor, .held_bytes = 5000, .first_width = 256};
  knows.checkpoints = true;
  MemoryOptions learns = knows;
  learns.lessons = {.parameters = 1 << 20, .start_bytes = 7000};
  const MemoryForecast before = ForecastMemory(knows), alone = ForecastMemory(learns);
  // Masters, gradients and two moments; the predictor that it began with.
  EXPECT_EQ(alone.expected.trainable, before.expected.trainable + (16 << 20));
  EXPECT_EQ(alone.expected.weights, before.expected.weights + 7000);
  const auto moment = [](const MemoryForecast& forecast, std::string_view name) {
    int64_t bytes = 0;
    for (const Moment& of : forecast.moments) bytes += of.name == name ? of.transient : 0;
    return bytes;
  };
  // Whose copies are in a checkpoint: all but the gradients.
  EXPECT_EQ(moment(alone, "checkpoint"), moment(before, "checkpoint") + (12 << 20));
  EXPECT_GT(moment(alone, "measuring the predictor"), 0);
  EXPECT_EQ(moment(before, "measuring the predictor"), 0);
  // A head for many layers: a copy of the stream, and the rows and scores that wait for the last.
  learns.lessons.joint = 1;
  learns.lessons.layers = 32;
  const int64_t row = Llama3().hidden * learns.element_bytes;
  EXPECT_GE(moment(ForecastMemory(learns), "forward"), moment(alone, "forward") + 2 * 2048 * row);
}

TEST(KeepRows, CountsAsTheSelectionDoes) {
  const std::vector<int64_t> one = {2048}, ragged = {2048, 130, 1000};
  EXPECT_EQ(KeepRows(one, {.keep = 0.5}).rows, 1024);
  EXPECT_EQ(KeepRows(one, {.keep = 0.3}).rows, 640);   // 9.6 of 32 blocks
  EXPECT_EQ(KeepRows(one, {.keep = 0.01}).rows, 128);  // sink and local
  // 0.6 * 5 blocks is 3, whatever the product rounds to.
  EXPECT_EQ(KeepRows(std::vector<int64_t>{320}, {.keep = 0.6}).rows, 192);
  // 16 blocks; all three, as there are fewer than four; 8 of 16, the last one of which has 40 rows
  // and is kept, while room is made for whole ones.
  const KeptRows kept = KeepRows(ragged, {.keep = 0.5});
  EXPECT_EQ(kept.rows, 1024 + 130 + 488);
  EXPECT_EQ(kept.reserved, 1024 + 130 + 512);
  EXPECT_EQ(kept.longest, 1024);
  EXPECT_EQ(KeepRows(ragged, {}).rows, 3178);
}

}  // namespace
}  // namespace lemo::planner
