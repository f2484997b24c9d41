#include "worker/train/data/split.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lemo::train {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(Split, DocumentsStayTogetherAsLongAsTheyFit) {
  const std::vector<int32_t> starts = {0, 3, 5, 12, 13, 14};
  EXPECT_THAT(SplitDocuments(starts, 100), ElementsAre(DocumentRange{0, 5}));
  EXPECT_THAT(SplitDocuments(starts, 14), ElementsAre(DocumentRange{0, 5}));
  EXPECT_THAT(SplitDocuments(starts, 13), ElementsAre(DocumentRange{0, 4}, DocumentRange{4, 5}));
  // The third one is longer than what is asked for, and is one by itself.
  EXPECT_THAT(SplitDocuments(starts, 5),
              ElementsAre(DocumentRange{0, 2}, DocumentRange{2, 3}, DocumentRange{3, 5}));
  EXPECT_THAT(SplitDocuments(starts, 1),
              ElementsAre(DocumentRange{0, 1}, DocumentRange{1, 2}, DocumentRange{2, 3},
                          DocumentRange{3, 4}, DocumentRange{4, 5}));
}

TEST(Split, APartIsThoseDocumentsByThemselves) {
  MicroBatch batch;
  batch.tokens = {1, 2, 3, 4, 5, 6};
  batch.labels = {2, -100, 4, -100, 6, -100};
  batch.positions = {0, 1, 0, 9, 0, 1};
  batch.document_starts = {0, 2, 4, 6};
  batch.document_rows = {7, 8, 9};
  batch.document_places = {20, 22, 24};
  const MicroBatch part = PartOf(batch, {1, 3});
  EXPECT_THAT(part.tokens, ElementsAre(3, 4, 5, 6));
  EXPECT_THAT(part.labels, ElementsAre(4, -100, 6, -100));
  EXPECT_THAT(part.positions, ElementsAre(0, 9, 0, 1));
  EXPECT_THAT(part.document_starts, ElementsAre(0, 2, 4));
  EXPECT_THAT(part.document_rows, ElementsAre(8, 9));
  // The names that random draws go by are those of the effective batch.
  EXPECT_THAT(part.document_places, ElementsAre(22, 24));
  batch.document_rows.clear();
  batch.document_places.clear();
  EXPECT_THAT(PartOf(batch, {0, 1}).document_places, IsEmpty());
}

}  // namespace
}  // namespace lemo::train
