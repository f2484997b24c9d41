// What is kept, against a twin that takes lemo-spec section 6 by the word: one document at a time,
// the count in integers, the ranking as a sorted list.
#include "worker/train/tokens/selection.h"

#include <cmath>
#include <limits>
#include <string>
#include <tuple>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/property/tokens/random_layout.h"

namespace lemo::train {
namespace {

using ::testing::ElementsAre;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// A share in hundredths, so that the twin can count in integers.
struct Rule {
  int64_t hundredths = 100;
  bool use_threshold = false;
  double threshold = 0;
  int64_t sinks = 1, locals = 1, chunk = 1;

  SelectOptions Options() const {
    return {.keep = static_cast<double>(hundredths) / 100,
            .use_threshold = use_threshold,
            .threshold = threshold,
            .sink_blocks = sinks,
            .local_blocks = locals,
            .chunk_blocks = chunk};
  }
  std::string Text() const {
    return std::to_string(hundredths) + " %, threshold " +
           (use_threshold ? std::to_string(threshold) : "off") + ", sinks " +
           std::to_string(sinks) + ", locals " + std::to_string(locals) + ", chunks of " +
           std::to_string(chunk);
  }
};

// One document of which `whole` blocks were there at first.
BlockMask Twin(const std::vector<float>& scores, const BlockMask& always, const Rule& rule,
               int64_t whole) {
  const auto blocks = static_cast<int64_t>(scores.size());
  if (whole < 4 || (!rule.use_threshold && rule.hundredths == 100)) return BlockMask(blocks, 1);
  BlockMask kept(blocks, 0);
  for (int64_t n = 0; n < blocks; ++n) {
    kept[n] = n < rule.sinks || n >= blocks - rule.locals || always[n];
    if (rule.use_threshold) {
      kept[n] |= !std::isfinite(scores[n]) || !(scores[n] < rule.threshold);
    }
  }
  const int64_t share = rule.use_threshold ? 10 : rule.hundredths;
  const int64_t wanted = std::max<int64_t>(1, (share * whole + 99) / 100);
  // Blocks in the order in which they are taken.
  std::vector<std::tuple<double, int64_t>> order;  // (-mean of the chunk, block)
  for (int64_t n = 0; n < blocks; ++n) {
    const int64_t first = n / rule.chunk * rule.chunk;
    const int64_t last = std::min(first + rule.chunk, blocks);
    double sum = 0;
    bool finite = true;
    for (int64_t other = first; other < last; ++other) {
      finite = finite && std::isfinite(scores[other]);
      sum += scores[other];
    }
    order.emplace_back(finite ? -sum / static_cast<double>(last - first) : -HUGE_VAL, n);
  }
  std::sort(order.begin(), order.end());
  for (const auto& [mean, n] : order) {
    if (std::count(kept.begin(), kept.end(), 1) >= wanted) break;
    kept[n] = 1;
  }
  return kept;
}

BlockLayout OneDocument(int64_t blocks) {
  return MakeBlocks(std::vector<int32_t>{0, static_cast<int32_t>(3 * blocks)}, 3);
}

TEST(SelectBlocks, KeepsTheShareWithTheMandatoryBlocksInIt) {
  const BlockLayout layout = OneDocument(10);
  const std::vector<float> scores = {0, 1, 9, 2, 8, 3, 7, 4, 6, 0};
  // Half of ten: the first, the last, and the three best.
  EXPECT_THAT(SelectBlocks(scores, layout, {}, {.keep = 0.5}).kept,
              ElementsAre(1, 0, 1, 0, 1, 0, 1, 0, 0, 1));
  const BlockMask always = {0, 0, 0, 1, 0, 0, 0, 0, 0, 0};
  EXPECT_THAT(SelectBlocks(scores, layout, always, {.keep = 0.5}).kept,
              ElementsAre(1, 0, 1, 1, 1, 0, 0, 0, 0, 1));
  EXPECT_THAT(SelectBlocks(scores, layout, {}, {.keep = 0.05, .sink_blocks = 2}).kept,
              ElementsAre(1, 1, 0, 0, 0, 0, 0, 0, 0, 1))
      << "mandatory blocks stay, whatever the share";
}

TEST(SelectBlocks, TiesGoToTheLowerIndex) {
  const std::vector<float> scores(8, 1.0f);
  EXPECT_THAT(
      SelectBlocks(scores, OneDocument(8), {}, {.keep = 0.5, .sink_blocks = 0, .local_blocks = 0})
          .kept,
      ElementsAre(1, 1, 1, 1, 0, 0, 0, 0));
}

TEST(SelectBlocks, WhatIsNotFiniteIsKeptAndCounted) {
  const std::vector<float> scores = {5, 4, kNan, 3, 2, -kInf, 9, 1};
  for (const bool use_threshold : {false, true}) {
    const BlockChoice choice = SelectBlocks(scores, OneDocument(8), {},
                                            {.keep = 0.375,
                                             .use_threshold = use_threshold,
                                             .threshold = 6,
                                             .sink_blocks = 0,
                                             .local_blocks = 0});
    EXPECT_THAT(choice.kept, ElementsAre(0, 0, 1, 0, 0, 1, 1, 0));
    EXPECT_EQ(choice.bad_blocks, 2);
  }
}

// By hand: of ten blocks the ends and one with labels are mandatory, five are kept.
TEST(RecallOf, CountsWhatTrueScoresWouldKeepBesidesWhatIsKeptAnyway) {
  const BlockMask always = {0, 0, 0, 1, 0, 0, 0, 0, 0, 0};
  const SelectOptions half = {.keep = 0.5};
  const BlockMask kept = {1, 0, 1, 1, 0, 1, 0, 0, 0, 1};
  // Of the free blocks 1 and 2 are truly best; block 2 was kept, 5 was in the place of 1.
  const std::vector<float> truth = {0, 9, 8, 0, 1, 2, 3, 4, 5, 0};
  const ChoiceRecall recall = RecallOf(kept, truth, OneDocument(10), always, half);
  EXPECT_EQ(recall.wanted, 2);
  EXPECT_EQ(recall.kept, 1);
  // As many as were kept, whatever the rule that kept them.
  const SelectOptions above = {.use_threshold = true, .threshold = 100};
  EXPECT_EQ(RecallOf(kept, truth, OneDocument(10), always, above).wanted, 2);
  // Nothing is left to the ranking where a document is kept whole.
  EXPECT_EQ(RecallOf(BlockMask(3, 1), std::vector<float>(3), OneDocument(3), {}, half).wanted, 0);
  // A choice by the truth itself.
  const BlockMask best = SelectBlocks(truth, OneDocument(10), always, half).kept;
  EXPECT_EQ(RecallOf(best, truth, OneDocument(10), always, half).kept, 2);
}

TEST(SelectBlocks, ShortDocumentsAreKeptWhole) {
  for (const int64_t blocks : {1, 2, 3}) {
    EXPECT_EQ(
        SelectBlocks(std::vector<float>(blocks, 0.0f), OneDocument(blocks), {}, {.keep = 0.1}).kept,
        BlockMask(blocks, 1));
  }
  EXPECT_THAT(SelectBlocks(std::vector<float>(4, 0.0f), OneDocument(4), {}, {.keep = 0.1}).kept,
              ElementsAre(1, 0, 0, 1));
}

TEST(SelectBlocks, ARatioIsNotRoundedUpByItsOwnError) {
  for (int64_t blocks = 4; blocks <= 2000; ++blocks) {
    for (const int64_t hundredths : {7, 14, 28, 29, 55, 56, 57, 58, 60, 70}) {
      const BlockMask kept =
          SelectBlocks(
              std::vector<float>(blocks, 0.0f), OneDocument(blocks), {},
              {.keep = static_cast<double>(hundredths) / 100, .sink_blocks = 0, .local_blocks = 0})
              .kept;
      ASSERT_EQ(std::count(kept.begin(), kept.end(), 1), (hundredths * blocks + 99) / 100)
          << hundredths << " % of " << blocks;
    }
  }
}

// Every list of up to six scores of three kinds under every small rule.
TEST(SelectBlocks, EqualsTheTwinOnAllSmallInputs) {
  constexpr float kScores[] = {0, 1, kNan};
  for (int64_t blocks = 1; blocks <= 6; ++blocks) {
    const BlockLayout layout = OneDocument(blocks);
    int64_t lists = 1;
    for (int64_t n = 0; n < blocks; ++n) lists *= 3;
    for (int64_t list = 0; list < lists; ++list) {
      std::vector<float> scores;
      for (int64_t rest = list, n = 0; n < blocks; ++n, rest /= 3) {
        scores.push_back(kScores[rest % 3]);
      }
      for (const int64_t hundredths : {1, 20, 34, 50, 67, 99, 100}) {
        for (int64_t bits = 0; bits < 16; ++bits) {
          Rule rule;
          rule.hundredths = hundredths;
          rule.use_threshold = bits & 1;
          rule.threshold = 1;
          rule.sinks = bits >> 1 & 1;
          rule.locals = bits >> 2 & 1;
          rule.chunk = 1 + (bits >> 3 & 1);
          const BlockMask always(blocks, 0);
          const BlockMask kept = SelectBlocks(scores, layout, always, rule.Options()).kept;
          ASSERT_EQ(kept, Twin(scores, always, rule, blocks))
              << ::testing::PrintToString(scores) << " with " << rule.Text();
        }
      }
    }
  }
}

TEST(SelectBlocks, EqualsTheTwinAndStaysWithinMostAndLeastRows) {
  for (uint64_t seed = 0; seed < 20000; ++seed) {
    std::mt19937_64 random(seed);
    const std::vector<int32_t> starts = testing::RandomDocuments(random, 90);
    const BlockLayout layout = MakeBlocks(starts, testing::Draw(random, 1, 7));
    Rule rule;
    rule.hundredths = testing::Draw(random, 1, 100);
    rule.use_threshold = testing::Draw(random, 0, 3) == 0;
    rule.threshold = static_cast<double>(testing::Draw(random, -5, 5));
    rule.sinks = testing::Draw(random, 0, 3);
    rule.locals = testing::Draw(random, 0, 3);
    rule.chunk = testing::Draw(random, 1, 5);
    SCOPED_TRACE("seed " + std::to_string(seed) + ", " + rule.Text());
    std::vector<float> scores;
    for (int64_t n = 0; n < layout.blocks(); ++n) {
      // Few values, so that many are equal.
      const int64_t drawn = testing::Draw(random, -6, 6);
      scores.push_back(drawn == 6 ? (n % 2 == 0 ? kNan : -kInf) : static_cast<float>(drawn));
    }
    const BlockMask always = testing::RandomBits(random, layout.blocks(), 10);
    const BlockChoice choice = SelectBlocks(scores, layout, always, rule.Options());
    EXPECT_EQ(choice.bad_blocks, std::count_if(scores.begin(), scores.end(),
                                               [](float s) { return !std::isfinite(s); }));
    EXPECT_LE(CountRows(layout, choice.kept), MostRows(layout, always, rule.Options()));
    EXPECT_GE(CountRows(layout, choice.kept), LeastRows(layout, always, rule.Options()));
    // Documents are chosen apart. A document that has lost blocks goes by what it was.
    std::vector<int64_t> whole;
    for (size_t d = 0; d + 1 < layout.documents.size(); ++d) {
      whole.push_back(layout.documents[d + 1] - layout.documents[d] + testing::Draw(random, 0, 4));
    }
    const BlockMask of_whole = SelectBlocks(scores, layout, always, rule.Options(), whole).kept;
    for (size_t d = 0; d + 1 < layout.documents.size(); ++d) {
      const auto slice = [&](const auto& all) {
        return std::decay_t<decltype(all)>(all.begin() + layout.documents[d],
                                           all.begin() + layout.documents[d + 1]);
      };
      const int64_t blocks = layout.documents[d + 1] - layout.documents[d];
      ASSERT_EQ(slice(choice.kept), Twin(slice(scores), slice(always), rule, blocks));
      ASSERT_EQ(slice(of_whole), Twin(slice(scores), slice(always), rule, whole[d]));
    }
  }
}

}  // namespace
}  // namespace lemo::train
