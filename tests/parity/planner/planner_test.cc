// What the planner says again without libtorch, against the trainer's own.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "planner/memory/memory.h"
#include "tests/support/tiny_model.h"
#include "worker/train/model/model_split.h"
#include "worker/train/plan/plan_request.h"
#include "worker/train/tape/storage_policy.h"

namespace lemo::train {
namespace {

using testing::TinyConfig;

constexpr const char* kShapes[] = {"mha", "gqa", "qwen2", "qwen3", "opt", "opt_post_norm"};

planner::Stored StoredAs(StoragePolicy::Keep keep) {
  switch (keep) {
    case StoragePolicy::Keep::kInput:
      return planner::Stored::kInput;
    case StoragePolicy::Keep::kAttentionOut:
      return planner::Stored::kAttentionOut;
    case StoragePolicy::Keep::kMlp:
      return planner::Stored::kMlp;
    case StoragePolicy::Keep::kAll:
      return planner::Stored::kAll;
  }
  return planner::Stored::kAll;
}

TEST(Planner, ALayerKeepsTheBytesThatTheTapeReserves) {
  std::mt19937 random(11);
  const auto draw = [&random] { return static_cast<int64_t>(1 + random() % 5000); };
  for (const char* shape : kShapes) {
    const DecoderConfig config = TinyConfig(shape);
    for (const char* name : {"input", "attn_out", "mlp", "all"}) {
      SCOPED_TRACE(std::string(shape) + " " + name);
      const StoragePolicy policy = *ParseStoragePolicy(name);
      for (int i = 0; i < 40; ++i) {
        const LayerRowCounts rows{.attention = draw(),
                                  .mlp = draw(),
                                  .separate = i % 2 == 0,
                                  .seen = i % 3 == 0 ? draw() : 0,
                                  .stream = draw()};
        const int64_t element_bytes = i % 4 < 2 ? 4 : 2;
        const bool down_trains = i % 8 < 4;
        const planner::LayerMemory layer{.stored = StoredAs(policy.keep),
                                         .stream = rows.stream,
                                         .attention = rows.attention,
                                         .mlp = rows.mlp,
                                         .separate = rows.separate,
                                         .seen = rows.seen};
        EXPECT_EQ(
            planner::SavedBytes(ShapeOf(config), layer, element_bytes, down_trains),
            SavedBytes(policy, config, rows, element_bytes, /*statistic_bytes=*/4, down_trains));
        // Where three ranks share the rows of the stream.
        LayerRowCounts own = rows;
        own.own_attention = std::min(rows.attention, (rows.stream + 2) / 3);
        own.own_mlp = std::min(rows.mlp, (rows.stream + 2) / 3);
        planner::LayerMemory part = layer;
        part.row_ranks = 3;
        EXPECT_EQ(
            planner::SavedBytes(ShapeOf(config), part, element_bytes, down_trains),
            SavedBytes(policy, config, own, element_bytes, /*statistic_bytes=*/4, down_trains));
      }
    }
  }
}

TEST(Planner, TheSameGroupsCanShareAModel) {
  for (const char* shape : kShapes) {
    DecoderConfig config = TinyConfig(shape);
    for (const int64_t kv_heads : {config.kv_heads, int64_t{1}}) {
      config.kv_heads = kv_heads;
      for (int ranks = 1; ranks <= 16; ++ranks) {
        EXPECT_EQ(planner::TensorRanksFit(ShapeOf(config), ranks), CheckSplit(config, ranks).ok())
            << shape << " " << kv_heads << " " << ranks;
      }
    }
  }
}

}  // namespace
}  // namespace lemo::train
