#include "kernels/block_scores/block_scores.h"

#include "kernels/block_scores/block_scores_internal.h"
#include "tests/unit/kernels/kernel_test.h"

namespace lemo::kernels {
namespace {

using ::lemo::testing::CpuTypes;
using ::lemo::testing::Random;
using ::lemo::testing::Strided;
using ::lemo::testing::Tolerance;
using ::lemo::testing::WithThreads;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

// Products and sums in fp32 (fp64) of `terms` terms in all. Every entry is a maximum of sums of
// heads, so nothing cancels but inside a product; `largest` bounds what cancels there.
Tolerance ToleranceOf(at::ScalarType type, double terms, const at::Tensor& expected) {
  const double unit = lemo::testing::UnitRoundoff(WideType(type)) * 8;
  const double largest = expected.numel() == 0 ? 0 : expected.max().item<double>();
  return {16 * unit, (4 + std::sqrt(terms)) * unit * largest};
}

TEST(BlockScoresTest, HandMade) {
  // Two heads on one kv head, blocks of two rows, the last of one.
  const at::Tensor q = at::tensor({1.0, 2.0, -1.0, 1.0, 3.0, -4.0}, at::kDouble).view({3, 2, 1});
  const at::Tensor k = at::tensor({1.0, 10.0, -2.0}, at::kDouble).view({3, 1, 1});
  // Row 0 sees 1: (1 + 2) / 2 = 1.5. Row 1 sees 1 and 10: 0.5, 5 (row 0 must not see the 10).
  // Row 2 sees 1, 10 and -2: 1.5, 15, 4; all times the scale 2.
  EXPECT_SAME(BlockScores(q, k, 2, 2.0),
              at::tensor({10.0, 0.0, 30.0, 8.0}, at::kDouble).view({2, 2}));
  EXPECT_SAME(reference::BlockScores(q, k, 2, 2.0), BlockScores(q, k, 2, 2.0));
}

struct Case {
  int64_t rows, heads, kv_heads, head_dim, block_rows;
};

TEST(BlockScoresTest, EqualsReference) {
  Random random(71);
  // Empty, one row, a partial last block, blocks that do not divide a tile, blocks longer than a
  // tile, a document shorter than a block; MHA, GQA, MQA.
  const std::vector<Case> cases = {{0, 2, 1, 4, 64},    {1, 1, 1, 1, 64},   {5, 4, 4, 3, 1},
                                   {130, 4, 2, 8, 64},  {300, 2, 2, 5, 7},  {333, 6, 2, 16, 48},
                                   {600, 2, 1, 4, 300}, {520, 3, 1, 8, 64}, {515, 1, 1, 2, 1000},
                                   {257, 2, 2, 33, 256}};
  for (const at::ScalarType type : CpuTypes()) {
    for (const Case& c : cases) {
      SCOPED_TRACE(::testing::Message() << type << " rows " << c.rows << " heads " << c.heads << "/"
                                        << c.kv_heads << " blocks of " << c.block_rows);
      const at::Tensor q = random.Normal({c.rows, c.heads, c.head_dim}, type);
      const at::Tensor k = random.Normal({c.rows, c.kv_heads, c.head_dim}, type);
      const double scale = 1 / std::sqrt(static_cast<double>(c.head_dim));
      const at::Tensor want = reference::BlockScores(q, k, c.block_rows, scale);
      const at::Tensor got = BlockScores(q, k, c.block_rows, scale);
      EXPECT_TENSOR(got, want, ToleranceOf(type, static_cast<double>(c.heads * c.head_dim), want));
      EXPECT_SAME(BlockScores(Strided(q), Strided(k), c.block_rows, scale), got);
      EXPECT_SAME(
          BlockScores(q.transpose(0, 1).contiguous().transpose(0, 1), k, c.block_rows, scale), got);
    }
  }
}

// C6: against the whole S x S matrix made by ATen, with the bounds of the specification.
TEST(BlockScoresTest, EqualsNaiveMatrix) {
  Random random(72);
  for (const at::ScalarType type : CpuTypes()) {
    const int64_t rows = 1000, heads = 8, kv_heads = 2, width = 32, block = 64;
    const at::Tensor q = random.Normal({rows, heads, width}, type);
    const at::Tensor k = random.Normal({rows, kv_heads, width}, type);
    const at::Tensor keys = k.to(at::kDouble).repeat_interleave(heads / kv_heads, 1);
    const at::Tensor scores =
        at::einsum("ihd,jhd->hij", {q.to(at::kDouble), keys}).mul(0.25).relu().mean(0).tril();
    const int64_t blocks = (rows + block - 1) / block;
    const at::Tensor padded =
        at::constant_pad_nd(scores, {0, blocks * block - rows, 0, blocks * block - rows});
    const at::Tensor want = padded.view({blocks, block, blocks, block}).amax({1, 3});
    const double bound = type == at::kBFloat16 ? 1e-2 : type == at::kFloat ? 1e-5 : 1e-13;
    EXPECT_TENSOR(BlockScores(q, k, block, 0.25).to(at::kDouble), want, (Tolerance{bound, 0}));
  }
}

TEST(BlockScoresTest, NanAndInfStayInTheirPairs) {
  for (const at::ScalarType type : CpuTypes()) {
    at::Tensor q = at::ones({600, 2, 4}, type);
    at::Tensor k = at::ones({600, 2, 4}, type);
    k[70][1][2] = NAN;   // seen by rows from 70 on
    k[599][0][0] = NAN;  // by itself alone
    q[300][0][0] = INFINITY;
    q[400][0][0] = -INFINITY;  // dropped by the max, but for pairs that are NaN already
    const at::Tensor got = BlockScores(q, k, 64, 0.5);
    EXPECT_SAME(got, reference::BlockScores(q, k, 64, 0.5));
    EXPECT_EQ(got.isnan().sum().item<int64_t>(), 9 + 1);  // column 1 from row 1, and (9, 9)
    EXPECT_EQ(got[0][0].item<double>(), 2.0);
    EXPECT_EQ(got[4][0].item<double>(), INFINITY);
    EXPECT_EQ(got[6][0].item<double>(), 2.0);
  }
}

TEST(BlockScoresTest, HugeBFloat16ValuesKeepTheirSize) {
  const at::Tensor q = at::full({65, 2, 8}, 1e18, at::kBFloat16);
  const at::Tensor want = reference::BlockScores(q, q, 64, 0.125);
  const at::Tensor got = BlockScores(q, q, 64, 0.125);
  EXPECT_TRUE(got.isfinite().all().item<bool>());
  EXPECT_TENSOR(got, want, (Tolerance{1e-5, 0}));
}

TEST(BlockScoresTest, ThreadsGiveTheSameBits) {
  Random random(73);
  for (const at::ScalarType type : CpuTypes()) {
    const at::Tensor q = random.Normal({900, 4, 16}, type);
    const at::Tensor k = random.Normal({900, 2, 16}, type);
    at::Tensor one, three;
    WithThreads(1, [&] { one = BlockScores(q, k, 64, 0.25); });
    WithThreads(3, [&] { three = BlockScores(q, k, 64, 0.25); });
    EXPECT_SAME(three, one);
  }
}

TEST(BlockScoresTest, RefusesWhatItCannotDo) {
  const at::Tensor q = at::ones({4, 4, 2});
  EXPECT_THAT(
      [&] {
        BlockScores(q, at::ones({4, 3, 2}), 2, 1);
      },
      ThrowsMessage<c10::Error>(HasSubstr("divisor of 4")));
  EXPECT_THAT(
      [&] {
        BlockScores(q, at::ones({5, 4, 2}), 2, 1);
      },
      ThrowsMessage<c10::Error>(HasSubstr("[4, G, 2]")));
  EXPECT_THAT(
      [&] {
        BlockScores(q, at::ones({4, 2, 2}, at::kDouble), 2, 1);
      },
      ThrowsMessage<c10::Error>(HasSubstr("Double")));
  EXPECT_THAT([&] { BlockScores(q.to(at::kHalf), q.to(at::kHalf), 2, 1); },
              ThrowsMessage<c10::Error>(HasSubstr("supports Double, Float, BFloat16")));
  EXPECT_THROW(BlockScores(q, q, 0, 1), c10::Error);
  EXPECT_THROW(BlockScores(q, q, 2, NAN), c10::Error);
  EXPECT_THROW(BlockScores(q.view({16, 2}), q, 2, 1), c10::Error);
  EXPECT_THROW(BlockScores(at::ones({4, 4, 0}), at::ones({4, 4, 0}), 2, 1), c10::Error);
  const at::Tensor leaf = at::ones({4, 4, 2}).requires_grad_();
  EXPECT_THAT([&] { BlockScores(leaf, q, 2, 1); },
              ThrowsMessage<c10::Error>(HasSubstr("not differentiable")));
}

}  // namespace
}  // namespace lemo::kernels
