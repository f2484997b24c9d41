// The plan of a micro-batch, asked as the tape asks it, by random settings on random documents.
#include "worker/train/tokens/policy/plan.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/property/tokens/random_layout.h"
#include "tests/support/tiny_model.h"

namespace lemo::train {
namespace {

using testing::Draw;
using testing::RandomBits;
using testing::RandomDocuments;

constexpr int64_t kLayers = 3;

// Scores that nothing explains, and a check of what a policy is told.
class Scorer final : public TokenPolicy {
 public:
  Scorer(uint64_t seed, std::vector<int32_t> starts) : random_(seed), starts_(std::move(starts)) {}

  std::vector<float> Scores(const ScoreRequest& request) override {
    const BlockLayout& blocks = request.space.blocks();
    EXPECT_EQ(static_cast<int64_t>(request.block_ids.size()), blocks.blocks());
    const at::Tensor ids = request.space.row_ids();
    for (int64_t n = 0; n < blocks.blocks(); ++n) {
      EXPECT_EQ(ids[blocks.starts[n]].item<int32_t>(), starts_[request.block_ids[n]]);
    }
    std::vector<float> scores(blocks.blocks());
    for (float& score : scores) score = static_cast<float>(Draw(random_, -9, 9));
    ++asked;
    return scores;
  }
  int64_t asked = 0;

 private:
  std::mt19937_64 random_;
  const std::vector<int32_t> starts_;  // of the micro-batch's blocks
};

// One random plan, asked once through all layers.
class PlanProperty : public ::testing::Test {
 protected:
  void Run(uint64_t seed, Scope scope) {
    std::mt19937_64 random(seed);
    MicroBatch batch;
    batch.document_starts = RandomDocuments(random, 80);
    const int64_t rows = batch.document_starts.back();
    batch.tokens.assign(rows, 1);
    batch.labels.assign(rows, kIgnoreLabel);
    for (size_t d = 0; d + 1 < batch.document_starts.size(); ++d) {
      for (int32_t i = batch.document_starts[d]; i < batch.document_starts[d + 1]; ++i) {
        batch.positions.push_back(i - batch.document_starts[d]);
      }
    }
    settings_ = TokenSettings();
    settings_.policy = "random";
    settings_.scope = scope;
    settings_.block = Draw(random, 1, 9);
    settings_.select.sink_blocks = Draw(random, 0, 2);
    settings_.select.local_blocks = Draw(random, 0, 2);
    settings_.select.chunk_blocks = Draw(random, 1, 4);
    settings_.keep_labels = Draw(random, 0, 1);
    settings_.group_layers = Draw(random, 1, 3);
    double keep = 1;
    for (int64_t i = 0; i < kLayers; ++i) {
      keep = scope == Scope::kNested ? std::max<int64_t>(1, Draw(random, 1, 100) * keep)
                                     : Draw(random, 1, 130);
      keep = std::min(1.0, keep / 100);
      if (scope == Scope::kStack && i > 0) keep = settings_.keep.front();
      settings_.keep.push_back(keep);
    }
    if (settings_.RowsComeBack()) {
      settings_.mlp =
          std::array{MlpRows::kAll, MlpRows::kShared, MlpRows::kOwn}[Draw(random, 0, 2)];
    }
    space_ = RowSpace::Make(batch, config_, at::kFloat, at::kCPU, settings_.block);
    layout_ = space_->blocks();
    labelled_ = RandomBits(random, rows, 3);
    Scorer scorer(seed, layout_.starts);
    TokenPlan plan(settings_, scorer, decoder_, *space_,
                   {.keep = settings_.keep, .labelled = labelled_});
    Ask(plan);
    Check(plan, scorer);
  }

  void Ask(TokenPlan& plan) {
    attention_.clear();
    mlp_.clear();
    shared_.clear();
    std::shared_ptr<const RowSpace> space = space_;
    if (const BlocksKept entering = plan.Enter(*space)) space = space->Shrunk(*entering);
    bounds_ = plan.Bounds();
    stream_ = space->rows();
    for (int64_t i = 0; i < kLayers; ++i) {
      if (const BlocksKept stay = plan.Stay(i, *space, {})) space = space->Shrunk(*stay);
      const BlocksKept attention = plan.Attention(i, *space, {});
      const BlocksKept mlp = plan.Mlp(i, *space, {});
      attention_.push_back(Rows(*space, attention));
      mlp_.push_back(Rows(*space, mlp));
      shared_.push_back(attention == mlp);
    }
  }

  // One entry a row of the micro-batch, as the row list of the tape has it.
  std::vector<uint8_t> Rows(const RowSpace& space, const BlocksKept& kept) const {
    std::vector<uint8_t> rows(space_->rows(), 0);
    const at::Tensor ids = (kept ? space.Rows(*kept) : space.all())->row_ids;
    for (int64_t i = 0; i < ids.numel(); ++i) rows[ids[i].item<int32_t>()] = 1;
    return rows;
  }

  void Check(const TokenPlan& plan, const Scorer& scorer) const {
    const auto count = [](const std::vector<uint8_t>& rows) {
      return std::count(rows.begin(), rows.end(), 1);
    };
    std::vector<uint8_t> through(space_->rows(), 1);
    EXPECT_LE(stream_, bounds_.stream);
    for (int64_t i = 0; i < kLayers; ++i) {
      SCOPED_TRACE("layer " + std::to_string(i));
      EXPECT_LE(count(attention_[i]), bounds_.layers[i].attention);
      EXPECT_LE(count(mlp_[i]), bounds_.layers[i].mlp);
      if (!shared_[i]) {
        EXPECT_TRUE(bounds_.layers[i].separate);
      }
      for (size_t r = 0; r < through.size(); ++r) through[r] &= attention_[i][r] & mlp_[i][r];
      if (settings_.mlp == MlpRows::kShared) {
        EXPECT_TRUE(shared_[i]);
      }
      if (settings_.mlp == MlpRows::kAll) {
        EXPECT_EQ(count(mlp_[i]), space_->rows());
      }
      CheckCounts(attention_[i], settings_.keep[i]);
      if (settings_.mlp == MlpRows::kOwn) CheckCounts(mlp_[i], settings_.keep[i]);
      for (size_t r = 0; r < through.size() && i > 0; ++r) {
        if (settings_.scope == Scope::kNested) {
          EXPECT_LE(attention_[i][r], attention_[i - 1][r]);
        }
        if (settings_.scope == Scope::kStack) {
          EXPECT_EQ(attention_[i][r], attention_[i - 1][r]);
        }
      }
    }
    EXPECT_EQ(plan.ThroughRows(), through);
    // What a run records.
    const lemo::v1::SelectionEvent event = plan.Selection();
    ASSERT_EQ(event.attention_size(), kLayers);
    for (int64_t i = 0; i < kLayers; ++i) {
      const std::string& attention = event.attention(i);
      const std::string& mlp = event.mlp(i).empty() ? attention : event.mlp(i);
      for (int64_t n = 0; n < layout_.blocks(); ++n) {
        EXPECT_EQ(attention[n], attention_[i][layout_.starts[n]]);
        EXPECT_EQ(mlp[n], mlp_[i][layout_.starts[n]]);
      }
    }
    SparsityCounts counts;
    plan.AddTo(&counts);
    for (int64_t i = 0; i < kLayers; ++i) {
      EXPECT_EQ(counts.attention[i], count(attention_[i]));
      EXPECT_EQ(counts.mlp[i], count(mlp_[i]));
    }
    int64_t sparse = std::count_if(settings_.keep.begin(), settings_.keep.end(),
                                   [](double keep) { return keep < 1; });
    if (settings_.scope == Scope::kStack) sparse = std::min<int64_t>(sparse, 1);
    const int64_t sub_blocks = settings_.mlp == MlpRows::kOwn ? 2 : 1;
    EXPECT_LE(scorer.asked, sub_blocks * sparse);
    if (settings_.scope == Scope::kLayer) {
      EXPECT_EQ(scorer.asked, sub_blocks * sparse);
    }
  }

  // Of every document the share of its blocks, or the mandatory ones if they are more.
  void CheckCounts(const std::vector<uint8_t>& rows, double keep) const {
    const BlockMask labels = LabelBlocks(layout_, labelled_);
    for (size_t d = 0; d + 1 < layout_.documents.size(); ++d) {
      const int64_t first = layout_.documents[d], last = layout_.documents[d + 1];
      int64_t kept = 0, mandatory = 0;
      for (int64_t n = first; n < last; ++n) {
        kept += rows[layout_.starts[n]];
        const bool must = n - first < settings_.select.sink_blocks ||
                          last - n <= settings_.select.local_blocks ||
                          (settings_.keep_labels && labels[n]);
        mandatory += must;
        if (must) {
          EXPECT_EQ(rows[layout_.starts[n]], 1) << "mandatory block " << n;
        }
      }
      const auto share = static_cast<int64_t>(std::ceil(keep * (last - first) - 1e-9));
      const int64_t expected = last - first < kLeastBlocks || keep >= 1
                                   ? last - first
                                   : std::max({int64_t{1}, share, mandatory});
      EXPECT_EQ(kept, expected) << "document " << d << ", keep " << keep;
    }
  }

  const DecoderConfig config_ = testing::TinyConfig("gqa");
  const ModelWeights weights_ = RandomWeights(config_, 1, at::kFloat, at::kCPU);
  const Decoder decoder_{config_, weights_};
  TokenSettings settings_;
  std::shared_ptr<const RowSpace> space_;
  BlockLayout layout_;
  std::vector<uint8_t> labelled_;
  RowBounds bounds_;
  int64_t stream_ = 0;
  std::vector<std::vector<uint8_t>> attention_, mlp_;  // by layer, one entry a row
  std::vector<bool> shared_;
};

TEST_F(PlanProperty, KeepsWhatTheSettingsSayWithinItsBounds) {
  for (uint64_t seed = 0; seed < 400 && !HasFailure(); ++seed) {
    for (const Scope scope : {Scope::kLayer, Scope::kNested, Scope::kStack}) {
      SCOPED_TRACE("seed " + std::to_string(seed) + ", scope " +
                   std::to_string(static_cast<int>(scope)));
      Run(seed, scope);
    }
  }
}

// A group has one choice, made where it begins: all its layers compute the same rows.
TEST_F(PlanProperty, AGroupSharesOneChoice) {
  MicroBatch batch = testing::RandomBatch(config_, {60, 31}, 1);
  space_ = RowSpace::Make(batch, config_, at::kFloat, at::kCPU, 4);
  layout_ = space_->blocks();
  for (const auto& [group, keep, asked] :
       std::vector<std::tuple<int64_t, std::vector<double>, int64_t>>{{2, {0.5, 0.5, 0.5}, 2},
                                                                      {3, {0.5, 0.5, 0.5}, 1},
                                                                      {2, {1, 0.5, 0.5}, 1},
                                                                      {2, {0.5, 1, 0.5}, 2},
                                                                      {1, {0.5, 0.5, 0.5}, 3}}) {
    settings_ = TokenSettings();
    settings_.policy = "random";
    settings_.scope = Scope::kGroup;
    settings_.keep = keep;
    settings_.group_layers = group;
    settings_.keep_labels = false;
    Scorer scorer(1, layout_.starts);
    TokenPlan plan(settings_, scorer, decoder_, *space_, {.keep = keep});
    Ask(plan);
    EXPECT_EQ(scorer.asked, asked);
    int64_t start = 0;
    for (int64_t i = 0; i < kLayers; ++i) {
      if (i > 0 && keep[i] < 1 && keep[i - 1] >= 1) start = i;
      const bool continues =
          i > start && (i - start) % group != 0 && keep[i] < 1 && keep[i - 1] < 1;
      if (continues) {
        EXPECT_EQ(attention_[i], attention_[i - 1]);
      }
      if (!continues && i > 0) {
        EXPECT_NE(attention_[i], attention_[i - 1]);
      }
    }
  }
}

}  // namespace
}  // namespace lemo::train
