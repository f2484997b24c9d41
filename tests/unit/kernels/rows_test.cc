#include "kernels/rows/rows.h"

#include "kernels/rows/rows_internal.h"
#include "tests/unit/kernels/kernel_test.h"

namespace lemo::kernels {
namespace {

using ::lemo::testing::CpuTypes;
using ::lemo::testing::Random;
using ::lemo::testing::Strided;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

TEST(RowsTest, HandMade) {
  const at::Tensor src = at::arange(8, at::kFloat).view({4, 2});
  const at::Tensor idx = at::tensor({1, 3}, at::kInt);
  EXPECT_SAME(GatherRows(src, idx), at::tensor({2.0f, 3.0f, 6.0f, 7.0f}).view({2, 2}));
  at::Tensor dst = src.clone();
  ScatterAddRows(dst, idx, at::full({2, 2}, 10.0f));
  EXPECT_SAME(dst, at::tensor({0.f, 1.f, 12.f, 13.f, 4.f, 5.f, 16.f, 17.f}).view({4, 2}));
}

TEST(RowsTest, EqualsReference) {
  Random random(11);
  for (const at::ScalarType type : CpuTypes()) {
    for (const int64_t rows : {0, 1, 5, 300}) {
      for (const int64_t width : {0, 1, 7, 64, 1001}) {
        for (const at::ScalarType index : {at::kInt, at::kLong}) {
          SCOPED_TRACE(::testing::Message() << type << " " << rows << "x" << width);
          const at::Tensor src = random.Normal({rows, width}, type);
          const at::Tensor idx = random.RowList(rows, index);
          const at::Tensor delta = random.Normal({idx.size(0), width}, type);
          // One addition rounded once is exact to the last bit; only fp64 -> fp32 -> bf16 of the
          // reference may round twice, which never differs for a sum of two bf16 numbers this
          // close.
          EXPECT_SAME(GatherRows(src, idx), reference::GatherRows(src, idx));
          EXPECT_SAME(GatherRows(Strided(src), Strided(idx)), reference::GatherRows(src, idx));
          at::Tensor got = src.clone();
          at::Tensor want = src.clone();
          ScatterAddRows(got, idx, delta);
          reference::ScatterAddRows(want, idx, delta);
          EXPECT_SAME(got, want);
          at::Tensor strided = src.clone();
          ScatterAddRows(strided, Strided(idx), Strided(delta));
          EXPECT_SAME(strided, want);
        }
      }
    }
  }
}

TEST(RowsTest, NoListMeansAllRows) {
  Random random(12);
  for (const at::ScalarType type : CpuTypes()) {
    const at::Tensor src = random.Normal({9, 33}, type);
    const at::Tensor delta = random.Normal({9, 33}, type);
    const at::Tensor copy = GatherRows(src, std::nullopt);
    EXPECT_SAME(copy, src);
    EXPECT_NE(copy.const_data_ptr(), src.const_data_ptr());
    at::Tensor all = src.clone();
    ScatterAddRows(all, std::nullopt, delta);
    at::Tensor listed = src.clone();
    ScatterAddRows(listed, at::arange(9, at::kLong), delta);
    EXPECT_SAME(all, listed);
    EXPECT_SAME(all, src + delta);
  }
}

TEST(RowsTest, ScatterIsTheTransposeOfGather) {
  Random random(13);
  const at::Tensor x = random.Normal({40, 6}, at::kDouble);
  const at::Tensor idx = random.RowList(40);
  const at::Tensor y = random.Normal({idx.size(0), 6}, at::kDouble);
  at::Tensor back = at::zeros({40, 6}, at::kDouble);
  ScatterAddRows(back, idx, y);
  EXPECT_NEAR((GatherRows(x, idx) * y).sum().item<double>(), (x * back).sum().item<double>(),
              1e-12);
}

TEST(RowsTest, NanStaysInItsRow) {
  at::Tensor dst = at::zeros({3, 4});
  ScatterAddRows(dst, at::tensor({1}, at::kLong), at::full({1, 4}, NAN));
  EXPECT_TRUE(dst[1].isnan().all().item<bool>());
  EXPECT_TRUE(dst[0].eq(0).all().item<bool>());
  EXPECT_TRUE(dst[2].eq(0).all().item<bool>());
}

TEST(RowsTest, RefusesBadListsAndLeavesDestinationUntouched) {
  const at::Tensor src = at::ones({4, 2});
  const at::Tensor delta = at::ones({2, 2});
  for (const auto& bad : {at::tensor({1, 4}, at::kLong), at::tensor({-1, 2}, at::kLong),
                          at::tensor({2, 2}, at::kLong), at::tensor({2, 1}, at::kLong)}) {
    at::Tensor dst = src.clone();
    EXPECT_THROW(GatherRows(src, bad), c10::IndexError);
    EXPECT_THROW(ScatterAddRows(dst, bad, delta), c10::IndexError);
    EXPECT_SAME(dst, src);
    EXPECT_THROW(reference::GatherRows(src, bad), c10::IndexError);
    EXPECT_THROW(reference::ScatterAddRows(dst, bad, delta), c10::IndexError);
  }
}

TEST(RowsTest, RefusesWhatItCannotDo) {
  at::Tensor dst = at::ones({4, 2});
  const at::Tensor idx = at::tensor({0, 1}, at::kLong);
  EXPECT_THAT(
      [&] {
        ScatterAddRows(dst, idx, at::ones({3, 2}));
      },
      ThrowsMessage<c10::Error>(HasSubstr("delta must be [2, 2]")));
  EXPECT_THAT([&] { ScatterAddRows(dst, idx, dst.slice(0, 1, 3)); },
              ThrowsMessage<c10::Error>(HasSubstr("overlaps")));
  EXPECT_THROW(ScatterAddRows(dst.t(), std::nullopt, at::ones({2, 4})), c10::Error);
  EXPECT_THROW(ScatterAddRows(dst, idx, at::ones({2, 2}, at::kDouble)), c10::Error);
  EXPECT_THROW(GatherRows(dst, at::ones({2})), c10::Error);
  EXPECT_THROW(GatherRows(at::ones({4}), idx), c10::Error);
  const at::Tensor trained = at::ones({4, 2}).requires_grad_();
  EXPECT_THAT([&] { GatherRows(trained, idx); },
              ThrowsMessage<c10::Error>(HasSubstr("not differentiable")));
}

}  // namespace
}  // namespace lemo::kernels
