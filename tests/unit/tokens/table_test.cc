// Policy table: what is looked up is what a direct evaluation by the base model gives.
#include "worker/train/tokens/policy/table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <limits>

#include "tests/unit/tokens/naive_scores.h"
#include "worker/train/tokens/scoring/attention_scores.h"

namespace lemo::train {
namespace {

using namespace testing;  // NOLINT: the naive twins
using ::testing::HasSubstr;

constexpr int64_t kBlock = 4;

class Table : public ::testing::Test {
 protected:
  Table() : model_("gqa") {
    for (const int length : {18, 7, 12}) {
      documents_.push_back(RandomBatch(model_.config, {length}, 40 + length));
    }
    // A block whose rows carry no label.
    for (int row = 4; row < 8; ++row) documents_[0].labels[row] = kIgnoreLabel;
  }
  ~Table() override { std::filesystem::remove_all(path_); }

  TablePolicy Policy(const std::string& score) const {
    TokenSettings settings;
    settings.policy = "table";
    settings.block = kBlock;
    settings.spec.set_table_score(score);
    return TablePolicy(settings, Decoder(model_.config, model_.weights), 5);
  }
  MicroBatch Packed(const std::vector<int>& which, bool numbered = true) const {
    std::vector<MicroBatch> parts;
    for (const int d : which) parts.push_back(documents_[d]);
    MicroBatch batch = Pack(parts);
    for (const int d : which) {
      if (numbered) batch.document_rows.push_back(100 + d);
    }
    return batch;
  }
  // Asks for the kept blocks of the stream of `batch`.
  std::vector<float> Ask(TablePolicy& policy, const MicroBatch& batch, const BlockMask& kept = {}) {
    const auto whole = RowSpace::Make(batch, model_.config, at::kDouble, at::kCPU, kBlock);
    const auto space = kept.empty() ? whole : whole->Shrunk(kept);
    std::vector<int32_t> ids;
    for (int32_t n = 0; n < whole->blocks().blocks(); ++n) {
      if (kept.empty() || kept[n]) ids.push_back(n);
    }
    const at::Tensor tokens = at::tensor(at::ArrayRef<int32_t>(batch.tokens), at::kLong);
    return policy.Scores({.space = *space,
                          .stream = {},
                          .tokens = tokens,
                          .block_ids = ids,
                          .document_rows = batch.document_rows,
                          .whole = whole.get(),
                          .labels = at::tensor(at::ArrayRef<int32_t>(batch.labels), at::kLong)});
  }
  // By the plain model without adapters, which the table must not see.
  std::vector<float> Naive(const std::string& score, const MicroBatch& batch) const {
    Parameters base = model_.parameters;
    std::erase_if(
        base, [](const auto& tensor) { return tensor.first.find("lora") != std::string::npos; });
    const BlockLayout blocks = MakeBlocks(batch.document_starts, kBlock);
    const at::Tensor log_p = PlainLogits(model_.config, base, batch, {}).log_softmax(1);
    std::vector<float> scores;
    for (int64_t n = 0; n < blocks.blocks(); ++n) {
      double sum = 0, rows = 0;
      for (int64_t row = blocks.starts[n]; row < blocks.starts[n + 1]; ++row) {
        const int32_t label = batch.labels[row];
        if (score == "entropy") {
          sum -= (log_p[row].exp() * log_p[row]).sum().item<double>();
          ++rows;
        } else if (label != kIgnoreLabel) {
          sum -= log_p[row][label].item<double>();
          ++rows;
        }
      }
      scores.push_back(rows == 0 ? std::numeric_limits<float>::lowest()
                                 : static_cast<float>((score == "low_loss" ? -1 : 1) * sum / rows));
    }
    return scores;
  }
  static void ExpectNear(const std::vector<float>& got, const std::vector<float>& want) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t n = 0; n < got.size(); ++n) EXPECT_FLOAT_EQ(got[n], want[n]) << "block " << n;
  }

  ScoredModel model_;
  std::vector<MicroBatch> documents_;
  const std::filesystem::path path_ =
      std::filesystem::path(::testing::TempDir()) / ("block-scores-" + std::to_string(::getpid()));
};

TEST_F(Table, LossesAndEntropyAreTheBaseModels) {
  for (const char* score : {"loss", "low_loss", "entropy"}) {
    TablePolicy policy = Policy(score);
    const MicroBatch batch = Packed({0, 1, 2});
    policy.Add(batch);
    EXPECT_EQ(policy.documents(), 3);
    const std::vector<float> got = Ask(policy, batch);
    ExpectNear(got, Naive(score, batch));
    // The block without labels is the last choice, as loss and as low loss.
    if (score != std::string("entropy")) {
      EXPECT_EQ(*std::min_element(got.begin(), got.end()), got[1]);
    }
  }
}

TEST_F(Table, AttentionIsTheMeanOverTheBaseModelsLayers) {
  TablePolicy policy = Policy("attention");
  const MicroBatch batch = Packed({2, 0});
  policy.Add(batch);
  const Decoder base(model_.config, model_.weights);
  const auto space = RowSpace::Make(batch, model_.config, at::kDouble, at::kCPU, kBlock);
  const at::Tensor tokens = at::tensor(at::ArrayRef<int32_t>(batch.tokens), at::kLong);
  const at::Tensor want =
      MeanAttentionScores(base, 0, 3, base.embedding.index_select(0, tokens), *space, {})
          .to(at::kFloat);
  ExpectNear(Ask(policy, batch),
             {want.const_data_ptr<float>(), want.const_data_ptr<float>() + want.numel()});
}

TEST_F(Table, FindsDocumentsInOtherCompanyAndInWhatIsLeftOfThem) {
  TablePolicy policy = Policy("entropy");
  policy.Add(Packed({1, 0}));
  policy.Add(Packed({2}));
  const MicroBatch batch = Packed({2, 0, 1});
  const std::vector<float> whole = Naive("entropy", batch);
  ExpectNear(Ask(policy, batch), whole);
  // Blocks 0-2, 3-7, 8-9.
  const BlockMask kept = {0, 1, 0, 1, 0, 1, 0, 1, 0, 1};
  std::vector<float> left;
  for (size_t n = 0; n < kept.size(); ++n) {
    if (kept[n]) left.push_back(whole[n]);
  }
  ExpectNear(Ask(policy, batch, kept), left);
}

TEST_F(Table, ScoresAtOnceWhatItDoesNotHave) {
  TablePolicy policy = Policy("loss");
  ExpectNear(Ask(policy, Packed({1, 2}, /*numbered=*/false)), Naive("loss", Packed({1, 2})));
  policy.Add(Packed({0}));
  // One of two is known.
  ExpectNear(Ask(policy, Packed({0, 1})), Naive("loss", Packed({0, 1})));
  EXPECT_EQ(policy.documents(), 1);
}

TEST_F(Table, ComesBackFromItsFileAndTakesNoOther) {
  TablePolicy policy = Policy("loss");
  EXPECT_TRUE(absl::IsNotFound(policy.Load(path_, "this run")));
  policy.Add(Packed({0, 2}));
  ASSERT_TRUE(policy.Save(path_, "this run").ok());

  TablePolicy again = Policy("loss");
  ASSERT_TRUE(again.Load(path_, "this run").ok());
  EXPECT_EQ(again.documents(), 2);
  EXPECT_EQ(Ask(again, Packed({2, 0})), Ask(policy, Packed({2, 0})));

  const absl::Status other = again.Load(path_, "another run");
  EXPECT_TRUE(absl::IsInvalidArgument(other));
  EXPECT_THAT(std::string(other.message()), HasSubstr("another run"));
  std::filesystem::resize_file(path_, std::filesystem::file_size(path_) - 3);
  EXPECT_TRUE(absl::IsInvalidArgument(again.Load(path_, "this run")));
  EXPECT_EQ(again.documents(), 2) << "a damaged file took the place of a good table";
}

}  // namespace
}  // namespace lemo::train
