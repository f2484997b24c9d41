#include "kernels/rms_norm/rms_norm.h"

#include "kernels/rms_norm/rms_norm_internal.h"
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

constexpr double kEps = 1e-5;

at::Tensor PlainNorm(const at::Tensor& x, const at::Tensor& weight) {
  return weight * (x * at::rsqrt(x.pow(2).mean(-1, true) + kEps));
}

TEST(RmsNormTest, HandMade) {
  const at::Tensor x = at::tensor({3.0, 4.0, 0.0, 0.0}, at::kDouble).view({1, 4});
  const at::Tensor weight = at::tensor({1.0, 2.0, 3.0, 4.0}, at::kDouble);
  auto [y, rstd] = RmsNormForward(x, weight, 0.0);  // mean of squares 6.25, rstd 0.4
  EXPECT_TENSOR(rstd, at::tensor({0.4}, at::kDouble), ToleranceFor(at::kDouble));
  EXPECT_TENSOR(y, at::tensor({1.2, 3.2, 0.0, 0.0}, at::kDouble).view({1, 4}),
                ToleranceFor(at::kDouble));
}

TEST(RmsNormTest, RoundsBeforeTheWeightLikeHuggingFace) {
  Random random(1);
  const at::Tensor x = random.Normal({5, 40}, at::kBFloat16);
  const at::Tensor weight = random.Normal({40}, at::kBFloat16);
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor expected =
      weight * (wide * at::rsqrt(wide.pow(2).mean(-1, true) + kEps)).to(at::kBFloat16);
  EXPECT_TENSOR(RmsNorm(x, weight, kEps), expected, ToleranceFor(at::kBFloat16));
}

TEST(RmsNormTest, EqualsReference) {
  Random random(2);
  const std::vector<std::vector<int64_t>> shapes = {
      {0, 8}, {1, 1}, {1, 7}, {3, 64}, {5, 33}, {7, 3000}, {200, 129}, {6, 4, 16}, {2, 3, 5, 31}};
  for (const at::ScalarType type : CpuTypes()) {
    for (const auto& shape : shapes) {
      SCOPED_TRACE(::testing::Message() << type << " " << at::IntArrayRef(shape));
      const at::Tensor x = random.Normal(shape, type, 3);
      const at::Tensor dy = random.Normal(shape, type);
      const at::Tensor weight = random.Normal({shape.back()}, type);
      const auto tolerance = ToleranceFor(type, static_cast<double>(shape.back()), 16);

      auto [y, rstd] = RmsNormForward(x, weight, kEps);
      auto [want_y, want_rstd] = reference::RmsNorm(x, weight, kEps);
      EXPECT_TENSOR(y, want_y, tolerance);
      EXPECT_TENSOR(rstd, want_rstd, ToleranceFor(rstd.scalar_type(), 1));

      auto [dx, dweight] = RmsNormBackward(dy, x, rstd, weight, true);
      auto [want_dx, want_dweight] = reference::RmsNormBackward(dy, x, rstd, weight, true);
      EXPECT_TENSOR(dx, want_dx, tolerance);
      EXPECT_TENSOR(dweight, want_dweight, ToleranceFor(type, static_cast<double>(x.numel()), 64));

      auto [strided_dx, strided_dweight] =
          RmsNormBackward(Strided(dy), Strided(x), rstd, Strided(weight), true);
      EXPECT_SAME(strided_dx, dx);
      EXPECT_SAME(strided_dweight, dweight);
      EXPECT_SAME(std::get<0>(RmsNormForward(Strided(x), Strided(weight), kEps)), y);
      EXPECT_FALSE(std::get<1>(RmsNormBackward(dy, x, rstd, weight, false)).defined());
    }
  }
}

TEST(RmsNormTest, NanAndInfPassThrough) {
  for (const at::ScalarType type : CpuTypes()) {
    at::Tensor x = at::ones({4, 70}, type);
    x[1][65] = NAN;
    x[2][3] = INFINITY;
    x[3].zero_();
    const at::Tensor weight = at::ones({70}, type);
    auto [y, rstd] = RmsNormForward(x, weight, kEps);
    auto [want_y, want_rstd] = reference::RmsNorm(x, weight, kEps);
    EXPECT_TENSOR(y, want_y, ToleranceFor(type));
    EXPECT_TRUE(y[1].isnan().all().item<bool>());
    EXPECT_FALSE(y[0].isnan().any().item<bool>());
  }
}

TEST(RmsNormTest, GradientEqualsFiniteDifferences) {
  Random random(3);
  const at::Tensor x = random.Normal({3, 5}, at::kDouble).requires_grad_();
  const at::Tensor weight = random.Normal({5}, at::kDouble).requires_grad_();
  const at::Tensor direction = random.Normal({3, 5}, at::kDouble);
  (RmsNorm(x, weight, kEps) * direction).sum().backward();
  const auto loss_of_x = [&](const at::Tensor& v) {
    return (RmsNorm(v, weight.detach(), kEps) * direction).sum();
  };
  const auto loss_of_weight = [&](const at::Tensor& v) {
    return (RmsNorm(x.detach(), v, kEps) * direction).sum();
  };
  EXPECT_TENSOR(x.grad(), FiniteDifference(loss_of_x, x), FiniteDifferenceTolerance());
  EXPECT_TENSOR(weight.grad(), FiniteDifference(loss_of_weight, weight),
                FiniteDifferenceTolerance());
}

TEST(RmsNormTest, GradientEqualsPlainAutograd) {
  Random random(4);
  for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
    const at::Tensor x = random.Normal({9, 4, 50}, type).requires_grad_();
    const at::Tensor weight = random.Normal({50}, type).requires_grad_();
    const at::Tensor dy = random.Normal({9, 4, 50}, type);
    const auto ours = torch::autograd::grad({RmsNorm(x, weight, kEps)}, {x, weight}, {dy});
    const auto plain = torch::autograd::grad({PlainNorm(x, weight)}, {x, weight}, {dy});
    EXPECT_TENSOR(ours[0], plain[0], ToleranceFor(type, 50, 16));
    EXPECT_TENSOR(ours[1], plain[1], ToleranceFor(type, 36, 16));
  }
}

TEST(RmsNormTest, FrozenWeightGetsNoGradient) {
  const at::Tensor x = at::ones({2, 4}).requires_grad_();
  const at::Tensor weight = at::ones({4});
  RmsNorm(x, weight, kEps).sum().backward();
  EXPECT_TRUE(x.grad().defined());
  EXPECT_FALSE(weight.grad().defined());
  const at::NoGradGuard guard;
  EXPECT_FALSE(RmsNorm(x, weight, kEps).requires_grad());
}

TEST(RmsNormTest, TilesAndThreadsGiveTheSameBits) {
  Random random(5);
  for (const at::ScalarType type : CpuTypes()) {
    const at::Tensor x = random.Normal({700, 37}, type);
    const at::Tensor dy = random.Normal({700, 37}, type);
    const at::Tensor weight = random.Normal({37}, type);
    auto [y, rstd] = RmsNormForward(x, weight, kEps);
    auto [dx, dweight] = RmsNormBackward(dy, x, rstd, weight, true);
    auto [tile_y, tile_rstd] = RmsNormForward(x.slice(0, 301, 460), weight, kEps);
    EXPECT_SAME(tile_y, y.slice(0, 301, 460));
    auto [tile_dx, unused] =
        RmsNormBackward(dy.slice(0, 301, 460), x.slice(0, 301, 460), tile_rstd, weight, false);
    EXPECT_SAME(tile_dx, dx.slice(0, 301, 460));
    WithThreads(1, [&, dx = dx, dweight = dweight, rstd = rstd] {
      auto [one_dx, one_dweight] = RmsNormBackward(dy, x, rstd, weight, true);
      EXPECT_SAME(one_dx, dx);
      EXPECT_SAME(one_dweight, dweight);
    });
  }
}

TEST(RmsNormTest, RefusesWhatItCannotDo) {
  const at::Tensor x = at::ones({2, 4});
  EXPECT_THAT([&] { RmsNorm(x, at::ones({3}), kEps); },
              ThrowsMessage<c10::Error>(HasSubstr("[4]")));
  EXPECT_THAT([&] { RmsNorm(x, at::ones({4}, at::kDouble), kEps); },
              ThrowsMessage<c10::Error>(HasSubstr("Double")));
  EXPECT_THAT([&] { RmsNorm(x.to(at::kHalf), at::ones({4}, at::kHalf), kEps); },
              ThrowsMessage<c10::Error>(HasSubstr("supports Double, Float, BFloat16")));
  EXPECT_THROW(RmsNorm(at::ones({2, 0}), at::ones({0}), kEps), c10::Error);
  EXPECT_THROW(RmsNormBackward(x, x, at::ones({3}), at::ones({4}), true), c10::Error);
}

}  // namespace
}  // namespace lemo::kernels
