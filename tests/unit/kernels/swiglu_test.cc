#include "kernels/swiglu/swiglu.h"

#include "kernels/cpu_simd.h"
#include "kernels/swiglu/swiglu_internal.h"
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

TEST(ExpTest, WithinTwoUnitsInTheLastPlace) {
  double worst_float = 0;
  for (float x = -87.3f; x < 88.3f; x += 0.00371f) {
    worst_float =
        std::max(worst_float, std::abs(cpu::Exp(x) / std::exp(static_cast<double>(x)) - 1));
  }
  EXPECT_LE(worst_float, 2 * std::ldexp(1, -23));
  double worst_double = 0;
  for (double x = -708; x < 709; x += 0.0371) {
    worst_double = std::max(worst_double, std::abs(cpu::Exp(x) / std::exp(x) - 1));
  }
  EXPECT_LE(worst_double, 2 * std::ldexp(1, -52));
}

TEST(ExpTest, Edges) {
  EXPECT_EQ(cpu::Exp(0.0f), 1.0f);
  EXPECT_EQ(cpu::Exp(0.0), 1.0);
  EXPECT_EQ(cpu::Exp(-INFINITY), 0.0f);
  EXPECT_EQ(cpu::Exp(-88.0f), 0.0f);
  EXPECT_EQ(cpu::Exp(INFINITY), INFINITY);
  EXPECT_EQ(cpu::Exp(-static_cast<double>(INFINITY)), 0.0);
  EXPECT_EQ(cpu::Exp(static_cast<double>(INFINITY)), INFINITY);
  EXPECT_TRUE(std::isnan(cpu::Exp(NAN)));
  EXPECT_TRUE(std::isnan(cpu::Exp(static_cast<double>(NAN))));
}

TEST(Bfloat16Test, RoundsLikeTorch) {
  Random random(30);
  at::Tensor values = random.Normal({20000}, at::kFloat, 1e3);
  for (const double special : {0.0, -0.0, 1e-40, 3.4e38, 1.00390625, 1.01171875}) {
    values[static_cast<int64_t>(std::abs(special) * 7) % 20000] = special;
  }
  values[7] = INFINITY;
  const at::Tensor want = values.to(at::kBFloat16);
  at::Tensor got = at::empty_like(want);
  for (int64_t i = 0; i < values.numel(); ++i) {
    got.mutable_data_ptr<c10::BFloat16>()[i] =
        cpu::Round<c10::BFloat16>(values.const_data_ptr<float>()[i]);
  }
  EXPECT_TRUE(got.view(at::kShort).equal(want.view(at::kShort)));
  EXPECT_TRUE(std::isnan(static_cast<float>(cpu::Round<c10::BFloat16>(NAN))));
  EXPECT_TRUE(std::isnan(static_cast<float>(cpu::Round<c10::BFloat16>(-std::nanf("0x3fffff")))));
}

TEST(SwiGluTest, HandMade) {
  const at::Tensor gate = at::tensor({0.0, 1.0, -1.0}, at::kDouble);
  const at::Tensor up = at::tensor({5.0, 2.0, 3.0}, at::kDouble);
  const double sigmoid = 1 / (1 + std::exp(-1.0));
  EXPECT_TENSOR(SwiGlu(gate, up), at::tensor({0.0, 2 * sigmoid, -3 * (1 - sigmoid)}, at::kDouble),
                ToleranceFor(at::kDouble));
  auto [dgate, dup] = SwiGluBackward(at::ones({3}, at::kDouble), gate, up);
  EXPECT_NEAR(dgate[0].item<double>(), 2.5, 1e-15);  // silu'(0) = 1/2
  EXPECT_NEAR(dup[1].item<double>(), sigmoid, 1e-15);
}

TEST(SwiGluTest, EqualsReference) {
  Random random(31);
  const std::vector<std::vector<int64_t>> shapes = {{0, 8}, {1, 1}, {3, 7}, {50, 333}, {2, 3, 17}};
  for (const at::ScalarType type : CpuTypes()) {
    for (const auto& shape : shapes) {
      SCOPED_TRACE(::testing::Message() << type << " " << at::IntArrayRef(shape));
      const at::Tensor gate = random.Normal(shape, type, 4);
      const at::Tensor up = random.Normal(shape, type);
      const at::Tensor dh = random.Normal(shape, type);
      const auto tolerance = ToleranceFor(type, 2, 1);
      const at::Tensor h = SwiGluForward(gate, up);
      EXPECT_TENSOR(h, reference::SwiGlu(gate, up), tolerance);
      EXPECT_SAME(SwiGluForward(Strided(gate), Strided(up)), h);
      auto [dgate, dup] = SwiGluBackward(dh, gate, up);
      auto [want_dgate, want_dup] = reference::SwiGluBackward(dh, gate, up);
      EXPECT_TENSOR(dgate, want_dgate, tolerance);
      EXPECT_TENSOR(dup, want_dup, tolerance);
      auto [strided_dgate, strided_dup] = SwiGluBackward(Strided(dh), Strided(gate), Strided(up));
      EXPECT_SAME(strided_dgate, dgate);
      EXPECT_SAME(strided_dup, dup);
    }
  }
}

TEST(SwiGluTest, ExtremeGates) {
  for (const at::ScalarType type : CpuTypes()) {
    const at::Tensor gate =
        at::tensor({-1e30, -1000.0, -89.0, -88.0, -20.0, 20.0, 88.5, 1000.0, 1e30}, at::kDouble)
            .to(type);
    const at::Tensor up = at::ones_like(gate);
    EXPECT_TENSOR(SwiGlu(gate, up), reference::SwiGlu(gate, up), ToleranceFor(type));
    auto [dgate, dup] = SwiGluBackward(up, gate, up);
    auto [want_dgate, want_dup] = reference::SwiGluBackward(up, gate, up);
    EXPECT_TENSOR(dgate, want_dgate, ToleranceFor(type));
    EXPECT_TENSOR(dup, want_dup, ToleranceFor(type));
    const at::Tensor infinite = at::tensor({INFINITY, -INFINITY, NAN}).to(type);
    EXPECT_SAME(SwiGlu(infinite, at::ones_like(infinite)),
                reference::SwiGlu(infinite, at::ones_like(infinite)));
  }
}

TEST(SwiGluTest, Gradients) {
  Random random(32);
  const at::Tensor gate = random.Normal({4, 5}, at::kDouble).requires_grad_();
  const at::Tensor up = random.Normal({4, 5}, at::kDouble).requires_grad_();
  const at::Tensor dh = random.Normal({4, 5}, at::kDouble);
  const auto ours = torch::autograd::grad({SwiGlu(gate, up)}, {gate, up}, {dh});
  const auto plain = torch::autograd::grad({at::silu(gate) * up}, {gate, up}, {dh});
  EXPECT_TENSOR(ours[0], plain[0], ToleranceFor(at::kDouble));
  EXPECT_TENSOR(ours[1], plain[1], ToleranceFor(at::kDouble));
  const auto loss_of_gate = [&](const at::Tensor& v) {
    return (SwiGlu(v, up) * dh).sum().detach();
  };
  const auto loss_of_up = [&](const at::Tensor& v) {
    return (SwiGlu(gate, v) * dh).sum().detach();
  };
  EXPECT_TENSOR(ours[0], FiniteDifference(loss_of_gate, gate), FiniteDifferenceTolerance());
  EXPECT_TENSOR(ours[1], FiniteDifference(loss_of_up, up), FiniteDifferenceTolerance());
}

TEST(SwiGluTest, TilesAndThreadsGiveTheSameBits) {
  Random random(33);
  for (const at::ScalarType type : CpuTypes()) {
    const at::Tensor gate = random.Normal({300, 101}, type);
    const at::Tensor up = random.Normal({300, 101}, type);
    const at::Tensor h = SwiGlu(gate, up);
    auto [dgate, dup] = SwiGluBackward(gate, gate, up);
    const auto tile = [](const at::Tensor& t) { return t.slice(0, 33, 250); };
    EXPECT_SAME(SwiGlu(tile(gate), tile(up)), tile(h));
    EXPECT_SAME(std::get<0>(SwiGluBackward(tile(gate), tile(gate), tile(up))), tile(dgate));
    EXPECT_SAME(std::get<1>(SwiGluBackward(tile(gate), tile(gate), tile(up))), tile(dup));
    WithThreads(1, [&] { EXPECT_SAME(SwiGlu(gate, up), h); });
  }
}

TEST(SwiGluTest, RefusesWhatItCannotDo) {
  EXPECT_THROW(SwiGlu(at::ones({2, 3}), at::ones({3, 2})), c10::Error);
  EXPECT_THROW(SwiGlu(at::ones({2}), at::ones({2}, at::kDouble)), c10::Error);
  EXPECT_THROW(SwiGlu(at::ones({2}, at::kLong), at::ones({2}, at::kLong)), c10::Error);
}

}  // namespace
}  // namespace lemo::kernels
