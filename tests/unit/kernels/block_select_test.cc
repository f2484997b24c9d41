#include "kernels/block_select/block_select.h"

#include "kernels/block_select/block_select_internal.h"
#include "tests/unit/kernels/kernel_test.h"

namespace lemo::kernels {
namespace {

using ::lemo::testing::Random;
using ::lemo::testing::Strided;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

at::Tensor Ints(const std::vector<int32_t>& values) { return at::tensor(values, at::kInt); }
at::Tensor Mask(const std::vector<uint8_t>& values) { return at::tensor(values, at::kByte); }

TEST(BlockSelectTest, HandMade) {
  const at::Tensor scores = at::tensor({5.0f, 1.0f, 3.0f, 3.0f, 4.0f, 9.0f, -1.0f, -2.0f});
  const at::Tensor mandatory = Mask({0, 7, 0, 0, 0, 0, 0, 1});
  const auto select = [&](const std::vector<int32_t>& counts) {
    return SelectTopBlocks(scores, mandatory, Ints({0, 5, 5, 8}), Ints(counts));
  };
  EXPECT_SAME(select({4, 1, 2}), Mask({1, 1, 1, 0, 1, 1, 0, 1}));  // the tie to block 2
  EXPECT_SAME(select({0, 0, -3}), Mask({0, 1, 0, 0, 0, 0, 0, 1}));
  EXPECT_SAME(select({9, 9, 9}), Mask({1, 1, 1, 1, 1, 1, 1, 1}));
}

TEST(BlockSelectTest, NotFiniteIsBest) {
  const at::Tensor scores = at::tensor({1e30f, NAN, 5.0f, -INFINITY, INFINITY});
  const at::Tensor none = Mask({0, 0, 0, 0, 0});
  const auto select = [&](int32_t count) {
    return SelectTopBlocks(scores, none, Ints({0, 5}), Ints({count}));
  };
  EXPECT_SAME(select(1), Mask({0, 1, 0, 0, 0}));
  EXPECT_SAME(select(2), Mask({0, 1, 0, 1, 0}));
  EXPECT_SAME(select(3), Mask({0, 1, 0, 1, 1}));
  EXPECT_SAME(select(4), Mask({1, 1, 0, 1, 1}));
}

TEST(BlockSelectTest, EqualsReference) {
  Random random(111);
  for (int round = 0; round < 200; ++round) {
    // Few different values, so that ties are the rule; some of them not finite.
    const at::Tensor cuts =
        std::get<0>(random.Integers(0, 60, {random.Integers(0, 5, {1}).item<int64_t>()}).sort());
    const int64_t blocks = cuts.numel() == 0 ? 0 : cuts[-1].item<int64_t>();
    const at::Tensor documents = at::cat({at::zeros({1}, at::kLong), cuts});
    at::Tensor scores = random.Integers(-2, 3, {blocks}).to(at::kFloat);
    scores.masked_fill_(random.Integers(0, 9, {blocks}) == 0, round % 2 == 0 ? NAN : -INFINITY);
    const at::Tensor mandatory = (random.Integers(0, 4, {blocks}) == 0).to(at::kByte);
    const at::Tensor counts = random.Integers(-1, 30, {cuts.numel()});
    const at::Tensor got = SelectTopBlocks(scores, mandatory, documents, counts);
    EXPECT_SAME(got, reference::SelectTopBlocks(scores, mandatory, documents, counts));
    EXPECT_SAME(SelectTopBlocks(Strided(scores), Strided(mandatory),
                                Strided(documents.to(at::kInt)), Strided(counts.to(at::kInt))),
                got);

    const at::Tensor lengths = random.Integers(1, 70, {blocks});
    const at::Tensor starts = at::cat({at::zeros({1}, at::kLong), lengths.cumsum(0)});
    const int64_t rows = (lengths * got).sum().item<int64_t>();
    for (const at::ScalarType type : {at::kInt, at::kLong}) {
      const at::Tensor list = RowsOfBlocks(starts, got, rows, type);
      EXPECT_SAME(list, reference::RowsOfBlocks(starts, got, rows, type));
      EXPECT_SAME(RowsOfBlocks(Strided(starts.to(at::kInt)), Strided(got), -1, type), list);
    }
  }
}

TEST(BlockSelectTest, RowsOfKeptBlocks) {
  EXPECT_SAME(RowsOfBlocks(Ints({0, 2, 3, 6}), Mask({1, 0, 9}), 5, at::kInt),
              Ints({0, 1, 3, 4, 5}));
  EXPECT_SAME(RowsOfBlocks(Ints({0}), Mask({}), -1, at::kLong), at::empty({0}, at::kLong));
  EXPECT_SAME(RowsOfBlocks(Ints({0, 4}), Mask({0}), 0, at::kInt), Ints({}));
}

TEST(BlockSelectTest, RefusesWhatItCannotDo) {
  const at::Tensor scores = at::ones({3});
  const at::Tensor none = Mask({0, 0, 0});
  EXPECT_THAT(
      [&] {
        SelectTopBlocks(scores, none, Ints({0, 2}), Ints({1}));
      },
      ThrowsMessage<c10::Error>(HasSubstr("must be 3; it is 2")));
  EXPECT_THAT(
      [&] {
        SelectTopBlocks(scores, Mask({0}), Ints({0, 3}), Ints({1}));
      },
      ThrowsMessage<c10::Error>(HasSubstr("Byte [3]")));
  EXPECT_THROW(SelectTopBlocks(scores, none, Ints({0, 3}), Ints({1, 1})), c10::Error);
  EXPECT_THROW(SelectTopBlocks(scores, none, Ints({}), Ints({})), c10::Error);
  EXPECT_THROW(SelectTopBlocks(scores.to(at::kDouble), none, Ints({0, 3}), Ints({1})), c10::Error);
  EXPECT_THAT(
      [&] {
        RowsOfBlocks(Ints({0, 2, 4}), Mask({1, 0}), 3, at::kInt);
      },
      ThrowsMessage<c10::Error>(HasSubstr("rows is 3, the mask keeps 2")));
  EXPECT_THROW(RowsOfBlocks(Ints({0, 2, 2}), Mask({1, 0}), -1, at::kInt), c10::Error);
  EXPECT_THROW(RowsOfBlocks(Ints({0, 2}), Mask({1, 0}), -1, at::kInt), c10::Error);
  EXPECT_THROW(RowsOfBlocks(Ints({0, 2}), Mask({1}), -1, at::kFloat), c10::Error);
}

}  // namespace
}  // namespace lemo::kernels
