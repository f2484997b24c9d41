#include "kernels/gather_norm/gather_norm.h"

#include "kernels/gather_norm/gather_norm_internal.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rows/rows.h"
#include "tests/unit/kernels/kernel_test.h"

namespace lemo::kernels {
namespace {

using ::lemo::testing::CpuTypes;
using ::lemo::testing::Random;
using ::lemo::testing::Strided;
using ::lemo::testing::ToleranceFor;
using ::lemo::testing::WithThreads;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

constexpr double kEps = 1e-5;

TEST(GatherNormTest, HandMade) {
  const at::Tensor src = at::tensor({9.0, 9.0, 3.0, 4.0, 1.0, 1.0}, at::kDouble).view({3, 2});
  const NormedRows rows =
      GatherRmsNorm(src, at::tensor({1}, at::kInt), at::tensor({1.0, 2.0}, at::kDouble), 3.5);
  EXPECT_SAME(rows.x, src.slice(0, 1, 2));
  EXPECT_SAME(rows.rstd, at::tensor({0.25}, at::kDouble));  // mean of squares 12.5, and 3.5
  EXPECT_SAME(rows.y, at::tensor({0.75, 2.0}, at::kDouble).view({1, 2}));
}

TEST(GatherNormTest, EqualsTheTwoOpsInEveryBitAndTheReference) {
  Random random(101);
  for (const at::ScalarType type : CpuTypes()) {
    for (const int64_t rows : {0, 1, 5, 300}) {
      for (const int64_t width : {1, 7, 64, 1001, 3000}) {
        SCOPED_TRACE(::testing::Message() << type << " " << rows << "x" << width);
        at::Tensor src = random.Normal({rows, width}, type, 3);
        if (rows == 300) {
          src[7][width - 1] = NAN;
          src[8][0] = INFINITY;
        }
        const at::Tensor weight = random.Normal({width}, type);
        const at::Tensor idx = random.RowList(rows, rows % 2 == 0 ? at::kInt : at::kLong);
        for (const auto& list : {std::optional(idx), std::optional<at::Tensor>()}) {
          const NormedRows got = GatherRmsNorm(src, list, weight, kEps);
          const at::Tensor x = GatherRows(src, list);
          const auto [y, rstd] = RmsNormForward(x, weight, kEps);
          EXPECT_SAME(got.x, x);
          EXPECT_SAME(got.y, y);
          EXPECT_SAME(got.rstd, rstd);
          EXPECT_TRUE(rows == 0 || got.x.const_data_ptr() != src.const_data_ptr());
          const at::Tensor copy = at::empty_like(x);
          const auto [want_y, want_rstd] = reference::GatherRmsNorm(src, list, weight, kEps, copy);
          EXPECT_SAME(got.x, copy);
          EXPECT_TENSOR(got.y, want_y, ToleranceFor(type, static_cast<double>(width), 16));
          EXPECT_TENSOR(got.rstd, want_rstd, ToleranceFor(WideType(type)));
          const auto strided = list ? std::optional(Strided(*list)) : list;
          EXPECT_SAME(GatherRmsNorm(Strided(src), strided, Strided(weight), kEps).y, y);
        }
      }
    }
  }
}

TEST(GatherNormTest, FillsTheSlot) {
  const at::Tensor src = at::arange(12, at::kFloat).view({4, 3});
  const at::Tensor slot = at::full({2, 3}, -1.0f);
  const NormedRows rows =
      GatherRmsNorm(src, at::tensor({0, 3}, at::kLong), at::ones({3}), kEps, slot);
  EXPECT_EQ(rows.x.const_data_ptr(), slot.const_data_ptr());
  EXPECT_SAME(slot, at::tensor({0.f, 1.f, 2.f, 9.f, 10.f, 11.f}).view({2, 3}));
}

TEST(GatherNormTest, ThreadsGiveTheSameBits) {
  Random random(102);
  const at::Tensor src = random.Normal({3000, 37}, at::kBFloat16);
  const at::Tensor weight = random.Normal({37}, at::kBFloat16);
  const at::Tensor idx = random.RowList(3000);
  NormedRows one, three;
  WithThreads(1, [&] { one = GatherRmsNorm(src, idx, weight, kEps); });
  WithThreads(3, [&] { three = GatherRmsNorm(src, idx, weight, kEps); });
  EXPECT_SAME(three.y, one.y);
  EXPECT_SAME(three.rstd, one.rstd);
}

TEST(GatherNormTest, RefusesWhatItCannotDo) {
  const at::Tensor src = at::ones({4, 2});
  const at::Tensor weight = at::ones({2});
  const at::Tensor idx = at::tensor({1, 3}, at::kInt);
  const auto run = [&](const at::Tensor& list, const at::Tensor& slot) {
    return GatherRmsNorm(src, list, weight, kEps, slot);
  };
  EXPECT_THAT(
      [&] {
        run(at::tensor({1, 4}, at::kInt), at::empty({2, 2}));
      },
      ThrowsMessage<c10::Error>(HasSubstr("outside [0, 4)")));
  EXPECT_THAT(
      [&] {
        run(at::tensor({3, 1}, at::kInt), at::empty({2, 2}));
      },
      ThrowsMessage<c10::Error>(HasSubstr("ascend")));
  EXPECT_THAT([&] { run(idx, at::empty({3, 2})); }, ThrowsMessage<c10::Error>(HasSubstr("[2, 2]")));
  EXPECT_THAT(
      [&] {
        run(idx, at::empty({2, 4}).slice(1, 0, 2));
      },
      ThrowsMessage<c10::Error>(HasSubstr("contiguous")));
  EXPECT_THAT(
      [&] {
        run(idx, at::empty({2, 2}, at::kDouble));
      },
      ThrowsMessage<c10::Error>(HasSubstr("Double")));
  EXPECT_THAT([&] { run(idx, src.slice(0, 1, 3)); },
              ThrowsMessage<c10::Error>(HasSubstr("overlaps")));
  EXPECT_THROW(GatherRmsNorm(src, idx, at::ones({3}), kEps), c10::Error);
  EXPECT_THROW(GatherRmsNorm(at::ones({4}), std::nullopt, weight, kEps), c10::Error);
  EXPECT_THROW(GatherRmsNorm(at::ones({4, 0}), std::nullopt, at::ones({0}), kEps), c10::Error);
  EXPECT_THAT(
      [&] {
        GatherRmsNorm(at::ones({4, 2}).requires_grad_(), idx, weight, kEps);
      },
      ThrowsMessage<c10::Error>(HasSubstr("not differentiable")));
}

}  // namespace
}  // namespace lemo::kernels
