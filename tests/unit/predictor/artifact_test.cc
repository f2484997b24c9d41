// A predictor's directory: written whole, read back equal, refused when anything of it was changed.
#include "worker/train/tokens/predictor/artifact.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

namespace lemo::train {
namespace {

namespace fs = std::filesystem;

class PredictorArtifact : public ::testing::Test {
 protected:
  PredictorArtifact()
      : root_(fs::path(::testing::TempDir()) /
              ::testing::UnitTest::GetInstance()->current_test_info()->name()) {
    fs::remove_all(root_);
  }
  ~PredictorArtifact() override { fs::remove_all(root_); }

  fs::path root_;
};

PredictorUse Use() {
  return {.base = {"abc", "llama", 2, 24, 4, 2, 6}, .block = 8, .heads = {"layers.0", "stack"}};
}

Predictor Sample(const std::string& created = "2026-11-29T00:00:00Z") {
  Predictor predictor;
  PredictorCard& card = predictor.card;
  card.base = Use().base;
  card.shape = {.hidden = 24, .block = 8, .slice = 6, .r1 = 10, .r2 = 7, .p = 5};
  card.data_fingerprint = "data";
  card.sequence_length = 128;
  card.steps = 3;
  card.quality["layers.0"] = {std::vector<double>(kRecallShares.size(), 0.875), 0.5, 0.25, 0.125};
  card.loss_curve = {{1, 0.5}, {3, 0.25}};
  card.allocated = {.mean = 0.5,
                    .keep = {1.0, 0.25},
                    .mlp = "off",
                    .sequences = 7,
                    .loss_gap = 0.25,
                    .rises = {{0.2, 0.4}, {{0.5, 0.25}, {0.125, 0.0}}}};
  card.created = created;
  card.lemo_version = "0";
  for (const char* head : {"layers.0", "layers.1", "stack"}) {
    predictor.heads[head] = DrawAttentionPredictor(card.shape, 1, head);
    predictor.heads[head].scale = 0.75;
  }
  // As elastic size leaves it.
  PredictorPath& narrow = predictor.heads["layers.1"].q;
  narrow.w1 = narrow.w1.narrow(0, 0, 6).clone();
  narrow.w2 = narrow.w2.narrow(1, 0, 12).clone();
  predictor.mlp[1] = DrawMlpPredictor(24, 1, "mlp.1");
  return predictor;
}

// Replaces the first `from` in a file.
void Edit(const fs::path& path, const std::string& from, const std::string& to) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  std::string content = text.str();
  const size_t at = content.find(from);
  ASSERT_NE(at, std::string::npos) << from;
  content.replace(at, from.size(), to);
  std::ofstream(path, std::ios::binary) << content;
}

TEST_F(PredictorArtifact, ReadsBackWhatWasWritten) {
  const Predictor written = Sample();
  ASSERT_TRUE(WritePredictor(written, root_ / "p").ok());
  const absl::StatusOr<Predictor> read = ReadPredictor(root_ / "p");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_TRUE(CheckFits(*read, Use()).ok()) << CheckFits(*read, Use());
  ASSERT_EQ(read->heads.size(), 3u);
  for (const auto& [name, head] : written.heads) {
    AttentionPredictor a = head, b = read->heads.at(name);
    EXPECT_EQ(b.scale, 0.75);
    for (size_t i = 0; i < a.Matrices().size(); ++i) {
      EXPECT_TRUE(at::equal(*a.Matrices()[i], *b.Matrices()[i])) << name;
    }
  }
  EXPECT_TRUE(at::equal(read->mlp.at(1).w2, written.mlp.at(1).w2));
  EXPECT_EQ(read->card.loss_curve, written.card.loss_curve);
  EXPECT_EQ(read->card.allocated.keep, written.card.allocated.keep);
  EXPECT_EQ(read->card.allocated.mlp, "off");
  EXPECT_EQ(read->card.allocated.sequences, 7);
  EXPECT_EQ(read->card.allocated.loss_gap, 0.25);
  EXPECT_EQ(read->card.allocated.rises.shares, written.card.allocated.rises.shares);
  EXPECT_EQ(read->card.allocated.rises.rise, written.card.allocated.rises.rise);
  EXPECT_TRUE(read->card.allocated.threshold.empty());
  EXPECT_EQ(read->card.quality.at("layers.0").RecallAt(0.4), 0.875);
  EXPECT_EQ(read->card.created, written.card.created);
}

TEST_F(PredictorArtifact, FitsARunWhoseSharesItHas) {
  const Predictor predictor = Sample();
  PredictorUse use = Use();
  use.allocated = PredictorUse::Allocated::kShares;
  use.allocated_mlp = "off";
  EXPECT_TRUE(CheckFits(predictor, use).ok()) << CheckFits(predictor, use);
  const auto refusal = [&] { return std::string(CheckFits(predictor, use).message()); };
  use.allocated_mlp = "shared";
  EXPECT_NE(refusal().find("is off, wanted is shared"), std::string::npos) << refusal();
  use.allocated = PredictorUse::Allocated::kThresholds;
  EXPECT_NE(refusal().find("no thresholds by layer"), std::string::npos) << refusal();
}

TEST_F(PredictorArtifact, RefusesWhatWasChanged) {
  const fs::path dir = root_ / "p";
  const auto refusal = [&dir] { return std::string(ReadPredictor(dir).status().message()); };
  EXPECT_TRUE(absl::IsNotFound(ReadPredictor(dir).status()));
  ASSERT_TRUE(WritePredictor(Sample(), dir).ok());
  Edit(dir / "card.json", "\"scale\": 0.75", "\"scale\": 0.5");
  EXPECT_NE(refusal().find("was changed"), std::string::npos) << refusal();
  ASSERT_TRUE(WritePredictor(Sample(), dir).ok());
  Edit(dir / "card.json", "\"version\": 1", "\"version\": 9");
  EXPECT_NE(refusal().find("version 9"), std::string::npos) << refusal();
  ASSERT_TRUE(WritePredictor(Sample(), dir).ok());
  fs::resize_file(dir / "predictor.safetensors", 4000);
  EXPECT_NE(refusal().find("not the file"), std::string::npos) << refusal();
  ASSERT_TRUE(WritePredictor(Sample(), dir).ok());
  fs::resize_file(dir / "card.json", 100);
  EXPECT_NE(refusal().find("torn"), std::string::npos) << refusal();
}

TEST_F(PredictorArtifact, NamesWhatDoesNotFit) {
  PredictorUse use = Use();
  use.base.fingerprint = "other";
  use.base.hidden = 32;
  use.block = 64;
  use.score_rope = "true";
  use.heads = {"layers.0", "above.1"};
  use.mlp = {0, 1};
  const absl::Status status = CheckFits(Sample(), use);
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  for (const char* part :
       {"hidden is 24, wanted is 32", "fingerprint is abc, wanted is other",
        "block is 8, wanted is 64", "score_rope is false, wanted is true", "above.1, mlp.0"}) {
    EXPECT_NE(status.message().find(part), std::string::npos) << status.message();
  }
  EXPECT_EQ(status.message().find("family"), std::string::npos) << status.message();
}

TEST_F(PredictorArtifact, FindsTheNewestThatFits) {
  std::vector<std::string> reasons;
  EXPECT_EQ(*FindPredictor(root_, Use(), &reasons), fs::path());
  Predictor other = Sample("2026-11-29T09:00:00Z");
  other.card.base.layers = 3;
  ASSERT_TRUE(WritePredictor(Sample("2026-11-29T01:00:00Z"), root_ / "z").ok());
  ASSERT_TRUE(WritePredictor(Sample("2026-11-29T02:00:00Z"), root_ / "a").ok());
  ASSERT_TRUE(WritePredictor(other, root_ / "b").ok());
  fs::create_directories(root_ / "nothing");
  EXPECT_EQ(*FindPredictor(root_, Use(), &reasons), root_ / "a");
  ASSERT_EQ(reasons.size(), 1u);
  EXPECT_NE(reasons[0].find("layers is 3, wanted is 2"), std::string::npos) << reasons[0];
}

TEST(Quality, RecallPrecisionAndRankCorrelation) {
  const BlockLayout blocks = MakeBlocks(std::vector<int32_t>{0, 50, 62}, 10);  // 5 blocks, 2 blocks
  const std::vector<float> actual = {5, 4, 3, 2, 1, 9, 8};
  QualityMeter same, reversed;
  same.Add(actual, actual, blocks);
  EXPECT_EQ(same.documents(), 1);  // the short document says nothing
  EXPECT_EQ(same.Mean().RecallAt(0.4), 1.0);
  EXPECT_EQ(same.Mean().spearman, 1.0);
  EXPECT_EQ(same.Mean().precision, 1.0);
  reversed.Add(std::vector<float>{1, 2, 3, 4, 5, 0, 0}, actual, blocks);
  EXPECT_EQ(reversed.Mean().spearman, -1.0);
  EXPECT_EQ(reversed.Mean().RecallAt(0.4), 0.0);
  EXPECT_NEAR(reversed.Mean().RecallAt(0.6), 1.0 / 3, 1e-12);
  EXPECT_NEAR(reversed.Mean().precision, 1.0 / 3, 1e-12);  // of blocks 2, 3, 4 only 2 is average
}

}  // namespace
}  // namespace lemo::train
