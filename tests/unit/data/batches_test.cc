#include "worker/train/data/batches.h"

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/data/scratch.h"

namespace lemo::train {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Le;
using ::testing::SizeIs;

constexpr int32_t kNone = kIgnoreLabel;

class BatchesTest : public testing::Test {
 protected:
  Dataset Open(const std::string& content) {
    Opened opened = OpenData({scratch_.Write("a.jsonl", content)}, {.max_length = 16});
    EXPECT_TRUE(opened.dataset.ok()) << opened.dataset.status();
    return *std::move(opened.dataset);
  }
  Scratch scratch_;
};

TEST_F(BatchesTest, LabelsAreTheNextTrainedTokens) {
  const Dataset data = Open(
      "{\"prompt\": \"ab\", \"completion\": \"cd\"}\n{\"prompt\": \"x\", \"completion\": \"y\"}\n");
  EvalBatches batches(&data, 100, 0);
  const std::optional<MicroBatch> batch = batches.Next();
  ASSERT_TRUE(batch.has_value());
  EXPECT_THAT(batch->tokens, ElementsAre(kBos, 'a', 'b', 'c', 'd', kEos, kBos, 'x', 'y', kEos));
  EXPECT_THAT(batch->labels,
              ElementsAre(kNone, kNone, 'c', 'd', kEos, kNone, kNone, 'y', kEos, kNone));
  EXPECT_THAT(batch->positions, ElementsAre(0, 1, 2, 3, 4, 5, 0, 1, 2, 3));
  EXPECT_THAT(batch->document_starts, ElementsAre(0, 6, 10));
  EXPECT_FALSE(batches.Next().has_value());
}

TEST_F(BatchesTest, EvaluationKeepsFileOrderAndItsBounds) {
  const Dataset data =
      Open("{\"text\": \"a\"}\n{\"text\": \"bcdfg\"}\n{\"text\": \"k\"}\n{\"text\": \"m\"}\n");
  EvalBatches batches(&data, 6, 0);
  EXPECT_EQ(batches.MaxMicroBatchRows(), 7);
  EXPECT_THAT(batches.Next()->tokens, ElementsAre(kBos, 'a', kEos));
  EXPECT_THAT(batches.Next()->tokens, SizeIs(7));  // longer than a micro-batch: by itself
  EXPECT_THAT(batches.Next()->document_starts, ElementsAre(0, 3, 6));
  EXPECT_FALSE(batches.Next().has_value());
  EvalBatches two(&data, 100, 2);
  EXPECT_THAT(two.Next()->tokens, SizeIs(10));
  EXPECT_FALSE(two.Next().has_value());
}

TEST_F(BatchesTest, BatchOfSequencesSplitsIntoMicroBatches) {
  std::string rows;
  for (char c = 'a'; c < 'k'; ++c) rows += "{\"text\": \"" + std::string(1, c) + "\"}\n";
  const Dataset data = Open(rows);  // 10 documents of 3 tokens
  BatchStream stream = *BatchStream::Create(&data, {.seed = 3,
                                                    .max_length = 16,
                                                    .packing = false,
                                                    .batch_sequences = 4,
                                                    .micro_batch_tokens = 7});
  EXPECT_EQ(stream.SequencesPerEpoch(), 10);
  EXPECT_EQ(stream.StepsInEpoch(0), 3);
  EXPECT_EQ(stream.MaxMicroBatchRows(), 7);
  const Batch batch = stream.Next();
  EXPECT_EQ(batch.sequences, 4);
  EXPECT_EQ(batch.tokens, 12);
  EXPECT_EQ(batch.labelled_tokens, 8);
  ASSERT_THAT(batch.micro_batches, SizeIs(2));
  EXPECT_THAT(batch.micro_batches[0].document_starts, ElementsAre(0, 3, 6));
  EXPECT_EQ(stream.cursor().sequence, 4);
  stream.Next();
  EXPECT_EQ(stream.Next().sequences, 2);  // what is left of the epoch
  EXPECT_EQ(stream.cursor().epoch, 1);
  EXPECT_EQ(stream.cursor().sequence, 0);
}

TEST_F(BatchesTest, BatchOfTokensTakesAtLeastOneSequence) {
  const Dataset data = Open("{\"text\": \"a\"}\n{\"text\": \"bcdfgjklm\"}\n{\"text\": \"k\"}\n");
  BatchStream stream =
      *BatchStream::Create(&data, {.max_length = 16, .packing = false, .batch_tokens = 6});
  int64_t sequences = 0;
  for (int64_t i = stream.StepsInEpoch(0); i > 0; --i) {
    const Batch batch = stream.Next();
    EXPECT_TRUE(batch.tokens <= 6 || batch.sequences == 1);
    sequences += batch.sequences;
  }
  EXPECT_EQ(sequences, 3);
  EXPECT_EQ(stream.cursor().epoch, 1);
}

TEST_F(BatchesTest, PackingSharesSequences) {
  std::string rows;
  for (int i = 0; i < 10; ++i) rows += "{\"text\": \"a\"}\n";
  const Dataset data = Open(rows);
  BatchStream stream =
      *BatchStream::Create(&data, {.max_length = 16, .packing = true, .batch_sequences = 1});
  EXPECT_EQ(stream.SequencesPerEpoch(), 2);  // five documents of 3 in 16
  EXPECT_THAT(stream.Next().micro_batches[0].document_starts, ElementsAre(0, 3, 6, 9, 12, 15));
}

TEST_F(BatchesTest, StepsForEpochs) {
  std::string rows;
  for (int i = 0; i < 10; ++i) rows += "{\"text\": \"a\"}\n";
  const Dataset data = Open(rows);
  const BatchStream stream =
      *BatchStream::Create(&data, {.max_length = 16, .packing = false, .batch_sequences = 4});
  EXPECT_EQ(stream.StepsForEpochs(1), 3);
  EXPECT_EQ(stream.StepsForEpochs(2), 6);
  EXPECT_EQ(stream.StepsForEpochs(0.4), 1);
  EXPECT_EQ(stream.StepsForEpochs(0.5), 2);
  EXPECT_EQ(stream.StepsForEpochs(1.5), 5);
  const BatchStream tokens =
      *BatchStream::Create(&data, {.max_length = 16, .packing = false, .batch_tokens = 12});
  EXPECT_EQ(tokens.StepsForEpochs(2), 6);
}

// What a look ahead finds is what going there finds, whichever share looks.
TEST_F(BatchesTest, TheLargestBatchesAheadAreThoseThatCome) {
  std::string rows;
  for (int i = 0; i < 60; ++i) {
    rows += "{\"text\": \"" + std::string(1 + (i * 7) % 13, 'a') + "\"}\n";
  }
  const Dataset data = Open(rows);
  // Steps of the beginning count as in a run that drops rows later, or all alike.
  const auto falling = [](int64_t index) { return index < 4 ? 1.0 : 0.5; };
  const auto level = [](int64_t) { return 1.0; };
  for (const auto& weight : {std::function<double(int64_t)>(falling), {level}}) {
    for (const uint64_t seed : {1, 2, 3, 4}) {
      BatchOptions options{.seed = seed,
                           .max_length = 16,
                           .packing = seed % 2 == 0,
                           .batch_sequences = 5,
                           .micro_batch_tokens = 24,
                           .shares = 2};
      constexpr int64_t kBatches = 17;  // more than an epoch
      // By going there, on all shares.
      double most = 0, most_of_one = 0;
      std::map<int64_t, double> rows_of, longest_of;
      for (options.share = 0; options.share < 2; ++options.share) {
        BatchStream stream = *BatchStream::Create(&data, options);
        stream.Next();
        for (int64_t i = 0; i < kBatches; ++i) {
          for (const MicroBatch& part : stream.Next().micro_batches) {
            double& longest = longest_of[i];
            for (size_t d = 0; d + 1 < part.document_starts.size(); ++d) {
              const int32_t length = part.document_starts[d + 1] - part.document_starts[d];
              longest = std::max(longest, weight(i) * length);
            }
            rows_of[i] = std::max(rows_of[i], weight(i) * static_cast<double>(part.rows()));
            most = std::max(most, rows_of[i]);
            most_of_one = std::max(most_of_one, longest);
          }
        }
      }
      for (options.share = 0; options.share < 2; ++options.share) {
        BatchStream stream = *BatchStream::Create(&data, options);
        stream.Next();
        const std::vector<BatchStream::BatchAhead> ahead = stream.LargestAhead(kBatches, weight);
        ASSERT_THAT(ahead, SizeIs(AllOf(Ge(1), Le(2))));
        EXPECT_EQ(rows_of[ahead.front().index], most);
        EXPECT_EQ(longest_of[ahead.back().index], most_of_one);
        if (ahead.size() == 2) EXPECT_LT(longest_of[ahead.front().index], most_of_one);
        // It stands where it stood, and gives them when they are due.
        for (int64_t i = 0; i < kBatches; ++i) {
          const Batch batch = stream.Next();
          for (const BatchStream::BatchAhead& there : ahead) {
            if (there.index != i) continue;
            ASSERT_EQ(there.batch.micro_batches.size(), batch.micro_batches.size());
            EXPECT_EQ(there.batch.rounds, batch.rounds);
            for (size_t m = 0; m < batch.micro_batches.size(); ++m) {
              EXPECT_EQ(there.batch.micro_batches[m].document_rows,
                        batch.micro_batches[m].document_rows);
            }
          }
        }
      }
    }
  }
}

TEST_F(BatchesTest, OptionsAndCursorsAreChecked) {
  const Dataset data = Open("{\"text\": \"abcd\"}\n");
  const absl::Status bad =
      BatchStream::Create(&data, {.max_length = 4, .batch_sequences = 1, .batch_tokens = 1})
          .status();
  EXPECT_THAT(std::string(bad.message()), HasSubstr("give either this or batch_tokens"));
  EXPECT_THAT(std::string(bad.message()), HasSubstr("is 4, but a document has 6 tokens"));
  BatchStream stream = *BatchStream::Create(&data, {.max_length = 8, .batch_sequences = 1});
  EXPECT_TRUE(absl::IsInvalidArgument(stream.Seek({0, 2})));
  EXPECT_TRUE(absl::IsInvalidArgument(stream.Seek({-1, 0})));
  EXPECT_TRUE(absl::IsInvalidArgument(stream.Seek({0, -1})));
  EXPECT_TRUE(stream.Seek({0, 1}).ok());
  EXPECT_EQ(stream.cursor().epoch, 1);
}

}  // namespace
}  // namespace lemo::train
