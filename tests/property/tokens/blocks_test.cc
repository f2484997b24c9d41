// Blocks against a twin that knows of every row its document and its place, and nothing of runs.
#include "worker/train/tokens/blocks.h"

#include <algorithm>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/property/tokens/random_layout.h"
#include "worker/train/tokens/selection.h"

namespace lemo::train {
namespace {

using ::testing::ElementsAre;

struct Row {
  int64_t document, block;  // block: within the document
  bool operator==(const Row&) const = default;
};

std::vector<Row> RowsOfDocuments(const std::vector<int32_t>& starts, int64_t block_rows) {
  std::vector<Row> rows;
  for (size_t d = 0; d + 1 < starts.size(); ++d) {
    for (int32_t i = 0; i < starts[d + 1] - starts[d]; ++i) {
      rows.push_back({static_cast<int64_t>(d), i / block_rows});
    }
  }
  return rows;
}

// The layout whose blocks and documents begin where those of neighbouring rows differ.
BlockLayout Twin(const std::vector<Row>& rows) {
  BlockLayout layout;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (i == 0 || rows[i].document != rows[i - 1].document) {
      layout.documents.push_back(static_cast<int32_t>(layout.starts.size()));
    }
    if (i == 0 || rows[i] != rows[i - 1]) layout.starts.push_back(static_cast<int32_t>(i));
  }
  layout.documents.push_back(static_cast<int32_t>(layout.starts.size()));
  layout.starts.push_back(static_cast<int32_t>(rows.size()));
  return layout;
}

void ExpectSame(const BlockLayout& got, const BlockLayout& expected) {
  EXPECT_EQ(got.starts, expected.starts);
  EXPECT_EQ(got.documents, expected.documents);
}

TEST(Blocks, BeginAnewAtEveryDocument) {
  const std::vector<int32_t> starts = {0, 7, 8, 11};
  const BlockLayout layout = MakeBlocks(starts, 3);
  EXPECT_THAT(layout.starts, ElementsAre(0, 3, 6, 7, 8, 11));
  EXPECT_THAT(layout.documents, ElementsAre(0, 3, 4, 5));
  EXPECT_EQ(layout.rows_of(2), 1);
  EXPECT_EQ(layout.rows(), 11);
  const BlockLayout left = KeepBlocks(layout, {0, 1, 1, 0, 1});
  EXPECT_THAT(left.starts, ElementsAre(0, 3, 4, 7));
  EXPECT_THAT(left.documents, ElementsAre(0, 2, 3)) << "the document of which nothing stayed";
}

TEST(Blocks, EqualTheTwin) {
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 random(seed);
    const std::vector<int32_t> starts = testing::RandomDocuments(random, 30);
    const int64_t block_rows = testing::Draw(random, 1, 9);
    const std::vector<Row> rows = RowsOfDocuments(starts, block_rows);
    const BlockLayout layout = MakeBlocks(starts, block_rows);
    ExpectSame(layout, Twin(rows));

    const BlockMask kept = testing::RandomBits(random, layout.blocks(), 60);
    std::vector<int32_t> indices;
    std::vector<Row> stay;
    for (int64_t n = 0; n < layout.blocks(); ++n) {
      for (int32_t row = layout.starts[n]; row < layout.starts[n + 1]; ++row) {
        if (kept[n]) indices.push_back(row), stay.push_back(rows[row]);
      }
    }
    EXPECT_EQ(RowsOf(layout, kept), indices);
    EXPECT_EQ(CountRows(layout, kept), static_cast<int64_t>(indices.size()));
    ExpectSame(KeepBlocks(layout, kept), Twin(stay));

    // In parts that begin anywhere, some of them with nothing.
    std::vector<int64_t> bounds = {0, layout.rows()};
    for (int i = 0; i < 3; ++i) bounds.push_back(testing::Draw(random, 0, layout.rows()));
    std::sort(bounds.begin(), bounds.end());
    std::vector<int64_t> counts;
    for (size_t i = 0; i + 1 < bounds.size(); ++i) {
      counts.push_back(std::count_if(indices.begin(), indices.end(), [&](int32_t row) {
        return bounds[i] <= row && row < bounds[i + 1];
      }));
    }
    EXPECT_EQ(CountRows(layout, kept, bounds), counts);

    // Labels: a block with one, in documents where such blocks are under a quarter.
    const std::vector<uint8_t> labelled =
        testing::RandomBits(random, layout.rows(), testing::Draw(random, 0, 8));
    const BlockMask mask = LabelBlocks(layout, labelled);
    for (size_t d = 0; d + 1 < layout.documents.size(); ++d) {
      std::vector<uint8_t> with_label;
      for (int32_t n = layout.documents[d]; n < layout.documents[d + 1]; ++n) {
        with_label.push_back(0);
        for (int32_t row = layout.starts[n]; row < layout.starts[n + 1]; ++row) {
          if (labelled[row]) with_label.back() = 1;
        }
      }
      const auto count = std::count(with_label.begin(), with_label.end(), 1);
      if (!(count < 0.25 * static_cast<double>(with_label.size()))) {
        with_label.assign(with_label.size(), 0);
      }
      EXPECT_EQ(std::vector<uint8_t>(mask.begin() + layout.documents[d],
                                     mask.begin() + layout.documents[d + 1]),
                with_label);
    }
  }
}

}  // namespace
}  // namespace lemo::train
