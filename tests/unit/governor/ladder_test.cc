#include "worker/train/governor/ladder.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lemo::train {
namespace {

using planner::LayerStorage;
using planner::Stored;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Layers that keep 10, 30, 60 and 100 bytes, and take 4, 2, 1 and 0 seconds more.
LadderOptions Options(std::vector<LayerStorage> storage) {
  LadderOptions options{.storage = std::move(storage), .rows_max = 8};
  options.choices.assign(options.storage.size(), {{10, 4}, {30, 2}, {60, 1}, {100, 0}});
  return options;
}

std::vector<LayerStorage> Of(std::vector<Stored> stored) {
  std::vector<LayerStorage> storage;
  for (const Stored one : stored) storage.push_back({one, false});
  return storage;
}

constexpr Stored kInput = Stored::kInput, kOut = Stored::kAttentionOut, kMlp = Stored::kMlp,
                 kAll = Stored::kAll;

TEST(Ladder, BeginsWithTheSpecAndEndsWithTheLeast) {
  const Ladder ladder(Options(Of({kAll, kMlp})));
  const Rung first = ladder.At(0);
  EXPECT_EQ(first.storage, Of({kAll, kMlp}));
  EXPECT_EQ(first.micro_rows, 0);
  EXPECT_EQ(first.keep_most, 1);
  const Rung last = ladder.At(ladder.size() - 1);
  EXPECT_EQ(last.storage, Of({kInput, kInput}));
  EXPECT_EQ(last.micro_rows, 1);
  EXPECT_EQ(last.keep_most, 1);
}

TEST(Ladder, TheLayerThatLosesLeastForAByteGoesFirst) {
  // all -> mlp loses 1/40 s a byte, mlp -> attn_out 1/30, attn_out -> input 2/20.
  const Ladder ladder(Options(Of({kAll, kAll})));
  ASSERT_EQ(ladder.storages(), 7);
  EXPECT_EQ(ladder.storage(1), Of({kMlp, kAll}));
  EXPECT_EQ(ladder.storage(2), Of({kMlp, kMlp}));
  EXPECT_EQ(ladder.storage(3), Of({kOut, kMlp}));
  EXPECT_EQ(ladder.storage(4), Of({kOut, kOut}));
  EXPECT_EQ(ladder.storage(5), Of({kInput, kOut}));
  EXPECT_EQ(ladder.storage(6), Of({kInput, kInput}));
}

TEST(Ladder, NeverKeepsMoreThanTheSpecSays) {
  const Ladder ladder(Options(Of({kOut, kInput})));
  for (int64_t i = 0; i < ladder.storages(); ++i) {
    EXPECT_LE(ladder.storage(i)[0].stored, kOut);
    EXPECT_EQ(ladder.storage(i)[1].stored, kInput);
  }
  EXPECT_EQ(ladder.storages(), 2);
}

TEST(Ladder, WhatCostsNothingGoesFirst) {
  LadderOptions options = Options(Of({kAll}));
  options.choices = {{{10, 4}, {30, 0}, {60, 0}, {100, 0}}};
  const Ladder ladder(options);
  ASSERT_EQ(ladder.storages(), 3);
  EXPECT_EQ(ladder.storage(0), Of({kAll}));
  EXPECT_EQ(ladder.storage(1), Of({kOut}));
  EXPECT_EQ(ladder.storage(2), Of({kInput}));
}

TEST(Ladder, StorageComesBeforeSmallerPassesAndThoseBeforeFewerRows) {
  LadderOptions options = Options(Of({kOut}));
  options.keep = 0.75;
  options.min_keep = 0.25;
  const Ladder ladder(options);
  EXPECT_EQ(ladder.storages(), 2);
  EXPECT_EQ(ladder.micros(), 4);  // as they come, 4, 2, 1
  EXPECT_EQ(ladder.keeps(), 9);
  std::vector<int64_t> micro_rows;
  double keep = 1;
  for (int64_t rung = 0; rung < ladder.size(); ++rung) {
    const Rung at = ladder.At(rung);
    EXPECT_LE(at.keep_most, keep);
    keep = at.keep_most;
    if (keep == 1) micro_rows.push_back(at.micro_rows);
    EXPECT_EQ(at.storage, ladder.storage(ladder.storage_of(rung)));
    EXPECT_EQ(at.micro_rows, ladder.micro_rows(ladder.micro_of(rung)));
    EXPECT_EQ(at.keep_most, ladder.keep_most(ladder.keep_of(rung)));
  }
  EXPECT_THAT(micro_rows, ElementsAre(0, 0, 4, 4, 2, 2, 1, 1));
  EXPECT_DOUBLE_EQ(keep, 0.25);
  EXPECT_DOUBLE_EQ(ladder.keep_most(4), 0.5);
}

TEST(Ladder, OffloadIsForDevicesWithMemoryOfTheirOwn) {
  LadderOptions options = Options(Of({kInput, kInput}));
  EXPECT_EQ(Ladder(options).storages(), 1);
  options.own_memory = true;
  const Ladder ladder(options);
  ASSERT_EQ(ladder.storages(), 3);
  EXPECT_FALSE(ladder.storage(0)[0].offload);
  EXPECT_TRUE(ladder.storage(1)[0].offload);
  EXPECT_FALSE(ladder.storage(1)[1].offload);
  EXPECT_TRUE(ladder.storage(2)[1].offload);
  // What the host has already gives nothing more.
  options.storage = {{kAll, true}, {kInput, false}};
  EXPECT_EQ(Ladder(options).storage(0), options.storage);
  EXPECT_EQ(Ladder(options).storages(), 2);
}

TEST(Changes, SayWhatDiffersInWords) {
  const Rung first{Of({kOut, kOut, kOut, kOut, kOut}), 0, 1};
  EXPECT_THAT(ChangesOf(first, first), IsEmpty());
  Rung other{Of({kInput, kInput, kOut, kOut, kInput}), 512, 0.4};
  std::vector<Change> changes = ChangesOf(first, other);
  ASSERT_EQ(changes.size(), 3u);
  EXPECT_EQ(changes[0].action, "storage");
  EXPECT_EQ(changes[0].layers, "0-1,4");
  EXPECT_EQ(changes[0].from, "attn_out x5");
  EXPECT_EQ(changes[0].to, "input x2, attn_out x2, input x1");
  EXPECT_EQ(changes[1].action, "micro_batch");
  EXPECT_EQ(changes[1].to, "micro-batches of 512 rows");
  EXPECT_EQ(changes[2].action, "keep");
  EXPECT_EQ(changes[2].from, "as many rows as the spec keeps");
  EXPECT_EQ(changes[2].to, "at most 0.4 of the blocks");
  other = first;
  other.storage[2].offload = true;
  changes = ChangesOf(first, other);
  ASSERT_EQ(changes.size(), 1u);
  EXPECT_EQ(changes[0].action, "offload");
  EXPECT_EQ(changes[0].layers, "2");
}

}  // namespace
}  // namespace lemo::train
