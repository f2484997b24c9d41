#include "kernels/block_pool/block_pool.h"

#include "kernels/block_pool/block_pool_internal.h"
#include "tests/unit/kernels/kernel_test.h"

namespace lemo::kernels {
namespace {

using ::lemo::testing::CpuTypes;
using ::lemo::testing::FiniteDifference;
using ::lemo::testing::FiniteDifferenceTolerance;
using ::lemo::testing::Random;
using ::lemo::testing::Strided;
using ::lemo::testing::ToleranceFor;
using ::lemo::testing::WithThreads;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

at::Tensor Starts(const std::vector<int32_t>& starts) { return at::tensor(starts, at::kInt); }

TEST(BlockPoolTest, HandMade) {
  const at::Tensor u = at::tensor({1.0, -2.0, 3.0, -4.0, 5.0, 6.0}, at::kDouble).view({3, 2});
  const at::Tensor scale = at::tensor({2.0, 1.0, 0.5}, at::kDouble);
  // Rectified and scaled: (2, 0), (3, 0) and (2.5, 3).
  EXPECT_SAME(BlockMeanMaxForward(u, Starts({0, 2, 3}), scale),
              at::tensor({2.5, 0.0, 3.0, 0.0, 2.5, 3.0, 2.5, 3.0}, at::kDouble).view({2, 4}));
  const at::Tensor dz = at::tensor({1.0, 1.0, 10.0, 10.0, 1.0, 1.0, 10.0, 10.0}, at::kDouble);
  // Half of the mean's gradient times the scale, and the maximum's for the second row.
  EXPECT_SAME(BlockMeanMaxBackward(dz.view({2, 4}), u, Starts({0, 2, 3}), scale),
              at::tensor({1.0, 0.0, 10.5, 0.0, 5.5, 5.5}, at::kDouble).view({3, 2}));
}

TEST(BlockPoolTest, EqualsReference) {
  Random random(81);
  const std::vector<std::pair<std::vector<int32_t>, int64_t>> cases = {
      {{0}, 8},      {{0, 1}, 1},        {{0, 64, 128, 130}, 33}, {{0, 64, 70, 134}, 128},
      {{0, 500}, 7}, {{0, 1, 2, 3}, 16}, {{0, 5, 9}, 0}};
  for (const at::ScalarType type : CpuTypes()) {
    for (const auto& [starts, width] : cases) {
      for (const bool scaled : {false, true}) {
        SCOPED_TRACE(::testing::Message() << type << " rows " << starts.back() << " width " << width
                                          << " scaled " << scaled);
        const int64_t rows = starts.back();
        const auto blocks = static_cast<int64_t>(starts.size()) - 1;
        const at::Tensor u = random.Normal({rows, width}, type);
        const auto scale = scaled ? std::optional(random.Normal({rows}, WideType(type)).abs() + 0.1)
                                  : std::nullopt;
        const auto strided_scale = scaled ? std::optional(Strided(*scale)) : std::nullopt;
        const at::Tensor list = Starts(starts);
        const auto tolerance = ToleranceFor(WideType(type), 500, 4);
        const at::Tensor z = BlockMeanMaxForward(u, list, scale);
        EXPECT_TENSOR(z, reference::BlockMeanMax(u, list, scale), tolerance);
        EXPECT_SAME(BlockMeanMaxForward(Strided(u), Strided(list.to(at::kLong)), strided_scale), z);
        const at::Tensor dz = random.Normal({blocks, 2 * width}, WideType(type));
        const at::Tensor du = BlockMeanMaxBackward(dz, u, list, scale);
        EXPECT_TENSOR(du, reference::BlockMeanMaxBackward(dz, u, list, scale),
                      ToleranceFor(type, 4, 8));
        EXPECT_SAME(BlockMeanMaxBackward(Strided(dz), Strided(u), Strided(list), strided_scale),
                    du);
      }
    }
  }
}

TEST(BlockPoolTest, TiesGoToTheFirstRowAndZerosGetNothing) {
  for (const at::ScalarType type : CpuTypes()) {
    at::Tensor u = at::full({4, 3}, 2.0, type);
    u.select(1, 1).zero_();
    u[0][2] = 1.0;
    const at::Tensor dz = at::tensor({0.0, 0.0, 0.0, 1.0, 1.0, 1.0}, WideType(type)).view({1, 6});
    at::Tensor want = at::zeros({4, 3}, type);
    want[0][0] = 1.0;
    want[1][2] = 1.0;
    EXPECT_SAME(BlockMeanMaxBackward(dz, u, Starts({0, 4}), std::nullopt), want);
    EXPECT_SAME(reference::BlockMeanMaxBackward(dz, u, Starts({0, 4}), std::nullopt), want);
  }
}

TEST(BlockPoolTest, NanAndInfStayInTheirColumn) {
  for (const at::ScalarType type : CpuTypes()) {
    at::Tensor u = at::ones({6, 40}, type);
    u[1][3] = NAN;
    u[4][5] = INFINITY;
    u[5][6] = -INFINITY;
    const at::Tensor list = Starts({0, 3, 6});
    const at::Tensor z = BlockMeanMaxForward(u, list, std::nullopt);
    EXPECT_TENSOR(z, reference::BlockMeanMax(u, list, std::nullopt), ToleranceFor(WideType(type)));
    EXPECT_EQ(z.isnan().sum().item<int64_t>(), 2);
    EXPECT_EQ(z.isinf().sum().item<int64_t>(), 2);
    const at::Tensor dz = at::ones_like(z);
    EXPECT_TENSOR(BlockMeanMaxBackward(dz, u, list, std::nullopt),
                  reference::BlockMeanMaxBackward(dz, u, list, std::nullopt), ToleranceFor(type));
  }
}

TEST(BlockPoolTest, GradientEqualsFiniteDifferencesAndAutograd) {
  Random random(82);
  const at::Tensor u = random.Normal({9, 5}, at::kDouble).requires_grad_();
  const at::Tensor scale = random.Normal({9}, at::kDouble).abs() + 0.5;
  const at::Tensor direction = random.Normal({3, 10}, at::kDouble);
  const at::Tensor list = Starts({0, 4, 8, 9});
  const auto loss = [&](const at::Tensor& v) {
    return (BlockMeanMax(v, list, scale) * direction).sum();
  };
  loss(u).backward();
  EXPECT_TENSOR(u.grad(), FiniteDifference(loss, u), FiniteDifferenceTolerance());
  const at::Tensor v = at::relu(u * scale.unsqueeze(1));
  std::vector<at::Tensor> rows;
  for (const auto& block : v.split_with_sizes({4, 4, 1})) {
    rows.push_back(at::cat({block.mean(0), block.amax(0)}));
  }
  const auto plain = torch::autograd::grad({(at::stack(rows) * direction).sum()}, {u});
  EXPECT_TENSOR(u.grad(), plain[0], ToleranceFor(at::kDouble));
  EXPECT_FALSE(BlockMeanMax(u.detach(), list).requires_grad());
}

TEST(BlockPoolTest, ThreadsGiveTheSameBits) {
  Random random(83);
  for (const at::ScalarType type : CpuTypes()) {
    const at::Tensor u = random.Normal({1000, 256}, type);
    const at::Tensor list = at::arange(0, 1001, 50, at::kInt);
    at::Tensor one, three;
    WithThreads(1, [&] { one = BlockMeanMaxForward(u, list, std::nullopt); });
    WithThreads(3, [&] { three = BlockMeanMaxForward(u, list, std::nullopt); });
    EXPECT_SAME(three, one);
  }
}

TEST(BlockPoolTest, RefusesWhatItCannotDo) {
  const at::Tensor u = at::ones({4, 2});
  EXPECT_THAT(
      [&] {
        BlockMeanMaxForward(u, Starts({0, 2, 2, 4}), std::nullopt);
      },
      ThrowsMessage<c10::Error>(HasSubstr("block 1 is empty")));
  EXPECT_THAT(
      [&] {
        BlockMeanMaxForward(u, Starts({0, 2}), std::nullopt);
      },
      ThrowsMessage<c10::Error>(HasSubstr("must be 4; it is 2")));
  EXPECT_THAT(
      [&] {
        BlockMeanMaxForward(u, Starts({1, 4}), std::nullopt);
      },
      ThrowsMessage<c10::Error>(HasSubstr("starts[0] must be 0")));
  EXPECT_THAT(
      [&] {
        BlockMeanMaxForward(u, Starts({0, 5, 4}), std::nullopt);
      },
      ThrowsMessage<c10::Error>(HasSubstr("5 and 4")));
  EXPECT_THAT(
      [&] {
        BlockMeanMaxForward(u, Starts({0, 4}), at::ones({3}));
      },
      ThrowsMessage<c10::Error>(HasSubstr("[4]")));
  EXPECT_THROW(BlockMeanMaxForward(u, at::empty({0}, at::kInt), std::nullopt), c10::Error);
  EXPECT_THROW(BlockMeanMaxForward(u, at::ones({2}), std::nullopt), c10::Error);
  EXPECT_THROW(BlockMeanMaxBackward(at::ones({1, 3}), u, Starts({0, 4}), std::nullopt), c10::Error);
  const at::Tensor scale = at::ones({4}).requires_grad_();
  EXPECT_THAT(
      [&] {
        BlockMeanMax(u, Starts({0, 4}), scale);
      },
      ThrowsMessage<c10::Error>(HasSubstr("row_scale")));
}

}  // namespace
}  // namespace lemo::kernels
