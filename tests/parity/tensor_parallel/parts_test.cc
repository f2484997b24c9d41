// What each rank of a tensor group has of a model, and the loss over words that they share.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "common/safetensors.h"
#include "tests/parity/tensor_parallel/shapes.h"
#include "tests/support/test_gang.h"
#include "worker/train/model/model_split.h"
#include "worker/train/model/tensor_view.h"
#include "worker/train/objective/shared_cross_entropy.h"
#include "worker/train/parallel/row_parts.h"
#include "worker/train/parallel/shards.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::kSharedShapes;
using testing::SharedConfig;

Communicator& Group() { return TestGang().world(); }

ModelSplit SplitOf(const DecoderConfig& config) {
  return *ModelSplit::Make(config, Group().rank(), Group().size());
}

int64_t Bytes(const ModelWeights& weights) { return weights.OwnedBytes() + weights.MappedBytes(); }

TEST(Parts, AreOneWholeModel) {
  for (const std::string& shape : kSharedShapes) {
    SCOPED_TRACE(shape);
    const DecoderConfig config = SharedConfig(shape);
    const ModelSplit split = SplitOf(config);
    const ModelWeights whole = RandomWeights(config, 3, at::kFloat, at::kCPU);
    const ModelWeights part = RandomWeights(config, 3, at::kFloat, at::kCPU, &split);
    ASSERT_EQ(whole.tensors().size(), part.tensors().size());
    for (const auto& [name, tensor] : whole.tensors()) {
      SCOPED_TRACE(name);
      const Shard shard = split.ShardOf(name);
      EXPECT_TRUE(at::equal(part.at(name), NarrowToShard(tensor, shard)));
      EXPECT_TRUE(at::equal(GatherWhole(part.at(name), shard, Group()), tensor));
      const bool kept_whole = name.find("norm") != std::string::npos ||
                              name.ends_with("o_proj.bias") || name.ends_with("out_proj.bias") ||
                              name.ends_with("fc2.bias") ||
                              name.find("embed_positions") != std::string::npos;
      EXPECT_EQ(shard.cut(), !kept_whole);
    }
  }
}

// A model whose matrices are all of its size: two ranks have half of it each.
DecoderConfig LargeConfig() {
  DecoderConfig config = SharedConfig("untied");
  config.hidden = 64;
  config.heads = config.kv_heads = 4;
  config.head_dim = 16;
  config.intermediate = 172;
  config.vocabulary = 501;
  return config;
}

TEST(Parts, AreReadFromTheirPlaceInTheFile) {
  const DecoderConfig config = LargeConfig();
  const ModelSplit split = SplitOf(config);
  const fs::path dir =
      fs::path(::testing::TempDir()) / ("tensor_parallel_parts." + std::to_string(::getpid()));
  fs::create_directories(dir);
  const ModelWeights whole = RandomWeights(config, 3, at::kFloat, at::kCPU);
  std::map<std::string, TensorView> views;
  for (const auto& [name, tensor] : whole.tensors()) views[name] = AsView(tensor);
  ASSERT_TRUE(WriteSafetensors(dir / "model.safetensors", views, {{"format", "pt"}}).ok());
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kDouble}) {
    SCOPED_TRACE(type);
    const absl::StatusOr<ModelWeights> all = LoadWeights(dir, config, type, at::kCPU);
    const absl::StatusOr<ModelWeights> part = LoadWeights(dir, config, type, at::kCPU, &split);
    ASSERT_TRUE(all.ok() && part.ok()) << all.status() << part.status();
    int64_t columns = 0;
    for (const auto& [name, tensor] : all->tensors()) {
      SCOPED_TRACE(name);
      const Shard shard = split.ShardOf(name);
      EXPECT_TRUE(at::equal(part->at(name), NarrowToShard(tensor, shard)));
      EXPECT_TRUE(part->at(name).is_contiguous());
      if (shard.dim == 1) columns += static_cast<int64_t>(part->at(name).nbytes());
    }
    const double share = static_cast<double>(Bytes(*part)) / static_cast<double>(Bytes(*all));
    EXPECT_NEAR(share * Group().size(), 1.0, 0.02);
    if (type == at::kFloat) {
      EXPECT_EQ(part->OwnedBytes(), columns) << "rows lie in the file";
    }
  }
  fs::remove_all(dir);
}

std::string Refusal(const DecoderConfig& config, int ranks) {
  const absl::Status status = CheckSplit(config, ranks);
  EXPECT_TRUE(status.ok() || absl::IsInvalidArgument(status)) << status;
  return std::string(status.message());
}

TEST(CheckSplit, NamesTheSizesThatWouldDo) {
  DecoderConfig config = SharedConfig("gqa");
  EXPECT_EQ(Refusal(config, 1), "");
  EXPECT_EQ(Refusal(config, 2), "");
  EXPECT_EQ(Refusal(config, 4), "");
  EXPECT_EQ(Refusal(config, 3),
            "parallel.tensor: 3 ranks cannot share 4 heads, 2 key/value heads and an MLP of width "
            "24 evenly; sizes that can: 1, 2, 4");
  config.heads = 12;
  config.kv_heads = 6;
  config.intermediate = 36;
  EXPECT_THAT(Refusal(config, 4), HasSubstr("sizes that can: 1, 2, 3, 6, 12"));
  config.intermediate = 35;
  EXPECT_THAT(Refusal(config, 2), HasSubstr("sizes that can: 1"));
  config.post_norm = true;
  EXPECT_THAT(Refusal(config, 2), HasSubstr("norms follow"));
  config.post_norm = false;
  config.embedding_width = 10;
  EXPECT_THAT(Refusal(config, 2), HasSubstr("projects its embedding"));
}

TEST(Gather, PutsUnequalAndSharedPartsTogether) {
  const int rank = Group().rank(), ranks = Group().size();
  const at::Tensor whole = at::arange(7 * 6 * 5, at::kDouble).view({7, 6, 5});
  for (const int64_t dim : {0, 1, 2}) {
    const int64_t full = whole.size(dim);
    // Rank 1 has nothing.
    const int64_t first = rank == 0 ? 0 : rank == 1 ? 2 : 2 + (full - 2) * (rank - 2) / (ranks - 2);
    const int64_t end = rank == 0 ? 2 : rank == 1 ? 2 : 2 + (full - 2) * (rank - 1) / (ranks - 2);
    if (ranks == 2) {
      const Shard half{dim, rank == 0 ? 0 : 2, full, rank == 0 ? 2 : full - 2};
      EXPECT_TRUE(at::equal(GatherWhole(NarrowToShard(whole, half), half, Group()), whole));
      continue;
    }
    const Shard shard{dim, first, full, end - first};
    EXPECT_TRUE(at::equal(GatherWhole(NarrowToShard(whole, shard), shard, Group()), whole));
  }
  // Two ranks have each half.
  const Shard shared{0, rank / (ranks / 2) * 2, 4, 2, ranks / 2};
  const at::Tensor four = whole.narrow(0, 0, 4);
  EXPECT_TRUE(at::equal(GatherWhole(NarrowToShard(four, shared), shared, Group()), four));
  EXPECT_TRUE(at::equal(GatherWhole(whole, {}, Group()), whole));
}

TEST(SharedRows, AreGatheredAndAddedUp) {
  const int ranks = Group().size(), rank = Group().rank();
  std::vector<int64_t> uneven(ranks, 0);
  uneven[0] = 5;
  uneven[ranks - 1] += 3;
  for (const RowParts& parts :
       {RowParts::Even(&Group(), 0), RowParts::Even(&Group(), 1), RowParts::Even(&Group(), 11),
        RowParts::Shared(&Group(), uneven), RowParts::Everywhere(&Group(), 11)}) {
    const at::Tensor all = at::arange(3 * parts.rows(), at::kDouble).view({-1, 3});
    EXPECT_TRUE(at::equal(parts.Gather(parts.Own(all)), all));
    RowSum sum = parts.Sum(all * static_cast<double>(rank + 1));
    EXPECT_TRUE(at::equal(sum.Wait(), parts.Own(all) * (0.5 * ranks * (ranks + 1))));
    for (const int64_t most : {1, 2, 3, 4, 100}) {
      const at::Tensor again = at::zeros_like(all);
      int64_t first = 0, own_first = 0;
      for (const RowTile& tile : parts.Tiles(most)) {
        EXPECT_EQ(tile.first, first);
        EXPECT_EQ(tile.own_first, own_first);
        EXPECT_LE(tile.parts.rows(), most + (parts.shared() ? ranks - 1 : 0));
        const at::Tensor own = parts.Own(all).narrow(0, tile.own_first, tile.parts.count()).clone();
        EXPECT_TRUE(at::equal(tile.parts.Gather(own), tile.Of(all)));
        tile.Put(tile.Of(all), again);
        first += tile.parts.rows();
        own_first += tile.parts.count();
      }
      EXPECT_EQ(first, parts.rows());
      EXPECT_TRUE(at::equal(again, all));
    }
    EXPECT_EQ(parts.All().parts.rows(), parts.rows());
  }
  // One row less is one less of one rank.
  for (int64_t rows = 0; rows < 20; ++rows) {
    const RowParts less = RowParts::Even(&Group(), rows), more = RowParts::Even(&Group(), rows + 1);
    EXPECT_GE(more.count(), less.count());
    EXPECT_EQ(more.Without(less).rows(), 1);
  }
}

// Logits of one rank and of its share of the words, and what each makes of them.
void ExpectOneLoss(const at::Tensor& logits, const at::Tensor& labels, double bound) {
  DecoderConfig config = SharedConfig("mha");
  config.vocabulary = logits.size(1);
  const ModelSplit split = SplitOf(config);
  const ModelWeights weights = RandomWeights(config, 1, logits.scalar_type(), at::kCPU, &split);
  const Decoder decoder(split, weights, Group());
  const Shard words{1, split.vocabulary_first(), config.vocabulary, split.vocabulary_rows()};
  const at::Tensor whole = logits.clone();
  const at::Tensor part = NarrowToShard(logits, words).clone(at::MemoryFormat::Contiguous);
  const auto [loss, correct] = kernels::CrossEntropyInPlace(whole, labels, {.scale = 0.25});
  const auto [kept_loss, kept_correct] =
      SharedCrossEntropyInPlace(decoder, part, labels, {.want_gradient = false});
  EXPECT_TRUE(at::equal(part, NarrowToShard(logits, words)) || logits.isnan().any().item<bool>());
  const auto [shared_loss, shared_correct] =
      SharedCrossEntropyInPlace(decoder, part, labels, {.scale = 0.25});
  EXPECT_TRUE(at::equal(shared_correct, correct)) << shared_correct << correct;
  EXPECT_TRUE(at::equal(kept_correct, correct));
  EXPECT_TRUE(at::allclose(shared_loss, loss, bound, bound, /*equal_nan=*/true))
      << shared_loss << loss;
  EXPECT_TRUE(at::equal(kept_loss.nan_to_num(1e30), shared_loss.nan_to_num(1e30)));
  EXPECT_TRUE(at::allclose(part, NarrowToShard(whole, words), bound, bound, /*equal_nan=*/true));
}

TEST(SharedLoss, IsThatOfAllWords) {
  at::manual_seed(1);
  for (const int64_t words : {1, 3, 29, 1030}) {
    for (const int64_t rows : {0, 1, 9}) {
      SCOPED_TRACE(std::to_string(rows) + " rows of " + std::to_string(words));
      at::Tensor logits = at::randn({rows, words}, at::kDouble) * 5;
      at::Tensor labels = at::randint(words, {rows}, at::kLong);
      // The same on all ranks.
      Group().Broadcast(logits, 0).Wait();
      Group().Broadcast(labels, 0).Wait();
      ExpectOneLoss(logits, labels, 1e-12);
      ExpectOneLoss(logits.to(at::kFloat), labels, 1e-6);
    }
  }
}

TEST(SharedLoss, TiesTakeTheLowestWordOfAnyRank) {
  for (const auto& ties :
       std::vector<std::vector<int64_t>>{{0, 7}, {3, 4}, {1, 2}, {7}, {5, 6, 7}}) {
    at::Tensor logits = at::zeros({8, 8}, at::kDouble);
    for (const int64_t word : ties) logits.select(1, word).fill_(2);
    ExpectOneLoss(logits, at::arange(8), 1e-12);
  }
}

TEST(SharedLoss, InfAndNan) {
  const double inf = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const double odd : {-inf, inf, nan}) {
    for (int64_t word = 0; word < 8; ++word) {
      at::Tensor logits = at::arange(64, at::kDouble).view({8, 8}).remainder(5).contiguous();
      logits.select(1, word).fill_(odd);
      ExpectOneLoss(logits, at::arange(8), 1e-12);
    }
  }
  ExpectOneLoss(at::full({2, 8}, -inf, at::kDouble), at::tensor({1, 6}, at::kLong), 1e-12);
  at::Tensor half = at::zeros({8, 8}, at::kDouble);
  half.narrow(1, 0, 4).fill_(-inf);
  ExpectOneLoss(half, at::arange(8), 1e-12);
}

}  // namespace
}  // namespace lemo::train
