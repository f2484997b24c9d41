#include "kernels/rope/rope.h"

#include "kernels/rope/rope_internal.h"
#include "tests/unit/kernels/kernel_test.h"

namespace lemo::kernels {
namespace {

using ::lemo::testing::CpuTypes;
using ::lemo::testing::FiniteDifference;
using ::lemo::testing::FiniteDifferenceTolerance;
using ::lemo::testing::IsReleasedBy;
using ::lemo::testing::Random;
using ::lemo::testing::Strided;
using ::lemo::testing::ToleranceFor;
using ::lemo::testing::WithThreads;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

struct Tables {
  at::Tensor cos;
  at::Tensor sin;
};

Tables MakeTables(int64_t rows, int64_t half, at::ScalarType type) {
  const at::Tensor frequency =
      at::pow(10000.0, -at::arange(half, at::kDouble) / std::max<int64_t>(1, half));
  const at::Tensor angle = at::arange(rows, at::kDouble).unsqueeze(1) * frequency;
  const at::ScalarType wide = WideType(type);
  return {angle.cos().to(wide), angle.sin().to(wide)};
}

// Hugging Face's apply_rotary_pos_emb.
at::Tensor Plain(const at::Tensor& x, const Tables& tables) {
  const auto halves = x.chunk(2, -1);
  const at::Tensor rotated = at::cat({-halves[1], halves[0]}, -1);
  const at::Tensor cos = at::cat({tables.cos, tables.cos}, -1).unsqueeze(1);
  const at::Tensor sin = at::cat({tables.sin, tables.sin}, -1).unsqueeze(1);
  return x * cos + rotated * sin;
}

TEST(RopeTest, HandMade) {
  const at::Tensor x = at::tensor({1.0, 2.0, 3.0, 4.0}, at::kDouble).view({1, 1, 4});
  const at::Tensor cos = at::tensor({0.0, 1.0}, at::kDouble).view({1, 2});
  const at::Tensor sin = at::tensor({1.0, 0.0}, at::kDouble).view({1, 2});
  EXPECT_SAME(Rope(x, cos, sin), at::tensor({-3.0, 2.0, 1.0, 4.0}, at::kDouble).view({1, 1, 4}));
  EXPECT_SAME(RopeForward(x, cos, sin, true),
              at::tensor({3.0, 2.0, -1.0, 4.0}, at::kDouble).view({1, 1, 4}));
}

TEST(RopeTest, EqualsReferenceAndHuggingFace) {
  Random random(21);
  const std::vector<std::vector<int64_t>> shapes = {{0, 2, 8}, {1, 1, 2},   {3, 5, 6},
                                                    {9, 0, 4}, {65, 3, 34}, {130, 8, 64}};
  for (const at::ScalarType type : CpuTypes()) {
    for (const auto& shape : shapes) {
      SCOPED_TRACE(::testing::Message() << type << " " << at::IntArrayRef(shape));
      const at::Tensor x = random.Normal(shape, type);
      const Tables tables = MakeTables(shape[0], shape[2] / 2, type);
      for (const bool inverse : {false, true}) {
        const at::Tensor y = RopeForward(x, tables.cos, tables.sin, inverse);
        EXPECT_TENSOR(y, reference::Rope(x, tables.cos, tables.sin, inverse),
                      ToleranceFor(type, 2, 4));
        EXPECT_SAME(RopeForward(Strided(x), Strided(tables.cos), Strided(tables.sin), inverse), y);
      }
      if (type != at::kBFloat16) {  // Hugging Face rounds the tables to bf16 first
        EXPECT_TENSOR(Rope(x, tables.cos, tables.sin), Plain(x, tables), ToleranceFor(type, 2, 4));
      }
    }
  }
}

TEST(RopeTest, InverseUndoesTheRotation) {
  Random random(22);
  const at::Tensor x = random.Normal({50, 4, 32}, at::kDouble);
  const Tables tables = MakeTables(50, 16, at::kDouble);
  const at::Tensor y = Rope(x, tables.cos, tables.sin);
  EXPECT_TENSOR(RopeForward(y, tables.cos, tables.sin, true), x, ToleranceFor(at::kDouble, 4, 4));
}

TEST(RopeTest, GradientsAlsoWithScaledTables) {
  Random random(23);
  Tables tables = MakeTables(3, 3, at::kDouble);
  tables.cos.mul_(1.3);  // YaRN's attention factor: no longer a rotation
  tables.sin.mul_(1.3);
  const at::Tensor x = random.Normal({3, 2, 6}, at::kDouble).requires_grad_();
  const at::Tensor dy = random.Normal({3, 2, 6}, at::kDouble);
  const at::Tensor ours = torch::autograd::grad({Rope(x, tables.cos, tables.sin)}, {x}, {dy})[0];
  const at::Tensor plain = torch::autograd::grad({Plain(x, tables)}, {x}, {dy})[0];
  EXPECT_TENSOR(ours, plain, ToleranceFor(at::kDouble, 2, 8));
  const auto loss = [&](const at::Tensor& v) {
    return (Rope(v, tables.cos, tables.sin) * dy).sum();
  };
  EXPECT_TENSOR(ours, FiniteDifference(loss, x), FiniteDifferenceTolerance());
}

TEST(RopeTest, SavesOnlyTheTables) {
  const Tables tables = MakeTables(3, 2, at::kFloat);
  const auto rope = [&](const at::Tensor& x) { return Rope(x, tables.cos, tables.sin); };
  EXPECT_TRUE(IsReleasedBy(rope, {3, 2, 4}));
}

TEST(RopeTest, TilesAndThreadsGiveTheSameBits) {
  Random random(24);
  for (const at::ScalarType type : CpuTypes()) {
    const at::Tensor x = random.Normal({400, 3, 22}, type);
    const Tables tables = MakeTables(400, 11, type);
    const at::Tensor y = Rope(x, tables.cos, tables.sin);
    EXPECT_SAME(Rope(x.slice(0, 17, 90), tables.cos.slice(0, 17, 90), tables.sin.slice(0, 17, 90)),
                y.slice(0, 17, 90));
    WithThreads(1, [&] { EXPECT_SAME(Rope(x, tables.cos, tables.sin), y); });
  }
}

TEST(RopeTest, NanReachesOnlyItsPair) {
  at::Tensor x = at::ones({1, 1, 8});
  x[0][0][1] = NAN;
  const at::Tensor y = Rope(x, at::ones({1, 4}), at::ones({1, 4}));
  EXPECT_EQ(y.isnan().sum().item<int64_t>(), 2);
}

TEST(RopeTest, RefusesWhatItCannotDo) {
  const at::Tensor x = at::ones({2, 1, 4});
  EXPECT_THROW(Rope(at::ones({2, 1, 3}), at::ones({2, 1}), at::ones({2, 1})), c10::Error);
  EXPECT_THROW(Rope(at::ones({2, 4}), at::ones({2, 2}), at::ones({2, 2})), c10::Error);
  EXPECT_THAT(
      [&] {
        Rope(x, at::ones({3, 2}), at::ones({3, 2}));
      },
      ThrowsMessage<c10::Error>(HasSubstr("[2, 2]")));
  EXPECT_THROW(Rope(x, at::ones({2, 2}, at::kBFloat16), at::ones({2, 2}, at::kBFloat16)),
               c10::Error);
}

}  // namespace
}  // namespace lemo::kernels
