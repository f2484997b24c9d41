#include "kernels/dropout/dropout.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include "kernels/dropout/dropout_internal.h"
#include "kernels/dropout/dropout_mask.h"
#include "tests/unit/kernels/kernel_test.h"

namespace lemo::kernels {
namespace {

using ::lemo::testing::CpuTypes;
using ::lemo::testing::IsReleasedBy;
using ::lemo::testing::Random;
using ::lemo::testing::Strided;
using ::lemo::testing::WithThreads;

TEST(DropoutTest, MaskIsPinned) {
  // SplitMix64 from state 0 starts with these published words; the mask must never change silently,
  // because resumed runs replay it.
  EXPECT_EQ(DropoutWord(0, 0), 0xe220a8397b1dcdafu);
  EXPECT_EQ(DropoutWord(0, 1), 0x6e789e6aa1b965f4u);
  EXPECT_EQ(DropoutThreshold(0.5), 1u << 31);
  EXPECT_EQ(DropoutThreshold(0.0), 0u);
}

TEST(DropoutTest, EqualsReference) {
  Random random(51);
  for (const at::ScalarType type : CpuTypes()) {
    for (const int64_t rows : {0, 1, 5, 90}) {
      for (const int64_t width : {0, 1, 2, 7, 255, 256, 257, 1030}) {
        SCOPED_TRACE(::testing::Message() << type << " " << rows << "x" << width);
        const at::Tensor x = random.Normal({rows, width}, type);
        const at::Tensor ids = random.Integers(-5, int64_t{1} << 40, {rows});
        const at::Tensor y = Dropout(x, 0.3, {.seed = -9, .stream = 77}, ids);
        // fp64 arithmetic rounded to fp32 equals one fp32 product; bf16 then rounds once more.
        EXPECT_SAME(y, reference::Dropout(x, 0.3, -9, 77, ids));
        EXPECT_SAME(Dropout(Strided(x), 0.3, {.seed = -9, .stream = 77}, Strided(ids)), y);
      }
    }
  }
}

TEST(DropoutTest, DependsOnTheOriginalRowOnly) {
  const at::Tensor x = at::ones({200, 50});
  const at::Tensor ids = at::arange(200, at::kInt);
  const DropoutKey key{.seed = 1, .stream = 2};
  const at::Tensor all = Dropout(x, 0.5, key, ids);
  EXPECT_SAME(Dropout(x.slice(0, 60, 90), 0.5, key, ids.slice(0, 60, 90)), all.slice(0, 60, 90));
  EXPECT_SAME(Dropout(x, 0.5, key, ids.flip(0)), all.flip(0));
  EXPECT_SAME(Dropout(x, 0.5, key, ids.to(at::kLong)), all);
  WithThreads(1, [&] { EXPECT_SAME(Dropout(x, 0.5, key, ids), all); });
  EXPECT_FALSE(Dropout(x, 0.5, {.seed = 2, .stream = 2}, ids).equal(all));
  EXPECT_FALSE(Dropout(x, 0.5, {.seed = 1, .stream = 3}, ids).equal(all));
  EXPECT_FALSE(Dropout(x, 0.5, {.seed = 2, .stream = 1}, ids).equal(all)) << "not symmetric";
}

// Ranks that have some columns of a tensor each draw the masks of all of it.
TEST(DropoutTest, SomeColumnsGetTheMaskOfAll) {
  Random random(53);
  for (const at::ScalarType type : CpuTypes()) {
    const at::Tensor ids = random.Integers(-5, int64_t{1} << 40, {5});
    const at::Tensor x = random.Normal({5, 1031}, type);
    const at::Tensor all = Dropout(x, 0.3, {.seed = -9, .stream = 77}, ids);
    for (const int64_t first : {0, 1, 2, 255, 256, 257, 511, 1030}) {
      for (const int64_t width : {0, 1, 2, 254, 255, 256, 520, 1031}) {
        if (first + width > 1031) continue;
        SCOPED_TRACE(::testing::Message() << type << " " << first << "+" << width);
        const DropoutKey key{.seed = -9, .stream = 77, .first_column = first};
        const at::Tensor part = x.narrow(1, first, width);
        EXPECT_SAME(Dropout(part, 0.3, key, ids), all.narrow(1, first, width));
        EXPECT_SAME(reference::Dropout(part, 0.3, -9, 77, ids, first), all.narrow(1, first, width));
      }
    }
  }
  // The gradient's mask too.
  const at::Tensor ids = at::arange(4, at::kLong);
  const at::Tensor x = at::ones({4, 33}).requires_grad_();
  const at::Tensor y = Dropout(x, 0.5, {.first_column = 7}, ids);
  y.sum().backward();
  EXPECT_SAME(x.grad(), y.detach());
}

TEST(DropoutTest, DropsTheRightShareEverywhere) {
  constexpr int64_t kRows = 2000;
  constexpr int64_t kWidth = 512;
  for (const double p : {0.05, 0.5, 0.9}) {
    const at::Tensor y = Dropout(at::ones({kRows, kWidth}, at::kDouble), p,
                                 {.seed = 7, .stream = 0}, at::arange(kRows, at::kLong));
    const at::Tensor dropped = y.eq(0).to(at::kDouble);
    // Six standard deviations of the mean of n draws.
    const auto bound = [&](double n) { return 6 * std::sqrt(p * (1 - p) / n); };
    EXPECT_NEAR(dropped.mean().item<double>(), p, bound(kRows * kWidth));
    EXPECT_LE((dropped.mean(0) - p).abs().max().item<double>(), bound(kRows));
    EXPECT_LE((dropped.mean(1) - p).abs().max().item<double>(), bound(kWidth));
    // Neighbours in a row, and in a column, are dropped together with probability p^2.
    const at::Tensor beside = dropped.slice(1, 1) * dropped.slice(1, 0, kWidth - 1);
    const at::Tensor below = dropped.slice(0, 1) * dropped.slice(0, 0, kRows - 1);
    EXPECT_NEAR(beside.mean().item<double>(), p * p, bound(kRows * kWidth / 2.0));
    EXPECT_NEAR(below.mean().item<double>(), p * p, bound(kRows * kWidth / 2.0));
    EXPECT_NEAR(y.max().item<double>(), 1 / (1 - p), 1e-12);
  }
}

TEST(DropoutTest, BackwardReplaysTheMaskAndSavesNoData) {
  const at::Tensor ids = at::arange(6, at::kLong);
  const DropoutKey key{.seed = 3, .stream = 4};
  const at::Tensor x = at::ones({6, 40}, at::kDouble).requires_grad_();
  const at::Tensor y = Dropout(x, 0.4, key, ids);
  y.sum().backward();
  EXPECT_SAME(x.grad(), y.detach());
  const auto drop = [&](const at::Tensor& v) { return Dropout(v, 0.4, key, ids); };
  EXPECT_TRUE(IsReleasedBy(drop, {6, 40}));
}

TEST(DropoutTest, ZeroProbabilityIsTheInput) {
  const at::Tensor x = at::ones({2, 3});
  EXPECT_TRUE(Dropout(x, 0, {}, at::arange(2, at::kLong)).is_same(x));
}

TEST(DropoutTest, DroppedNanIsZero) {
  const at::Tensor ids = at::arange(4, at::kLong);
  const at::Tensor kept = Dropout(at::ones({4, 64}), 0.5, {}, ids).ne(0);
  const at::Tensor y = Dropout(at::full({4, 64}, NAN), 0.5, {}, ids);
  EXPECT_TRUE(y.isnan().equal(kept));
}

TEST(DropoutTest, RefusesWhatItCannotDo) {
  const at::Tensor x = at::ones({2, 3});
  const at::Tensor ids = at::arange(2, at::kLong);
  EXPECT_THROW(Dropout(x, 1.0, {}, ids), c10::Error);
  EXPECT_THROW(Dropout(x, -0.1, {}, ids), c10::Error);
  EXPECT_THROW(Dropout(x, NAN, {}, ids), c10::Error);
  EXPECT_THROW(Dropout(x, 0.1, {}, at::arange(3, at::kLong)), c10::Error);
  EXPECT_THROW(Dropout(at::ones({2}), 0.1, {}, ids), c10::Error);
  EXPECT_THROW(Dropout(x, 0.1, {.first_column = -1}, ids), c10::Error);
}

TEST(OperatorsTest, AllAreRegisteredWithACpuVersion) {
  for (const char* name : {"rms_norm", "rms_norm_backward", "gather_rows", "scatter_add_rows_",
                           "rope", "swiglu", "swiglu_backward", "cross_entropy_",
                           "cross_entropy_statistics", "cross_entropy_gradient_", "dropout"}) {
    const auto op = c10::Dispatcher::singleton().findSchema({std::string("lemo::") + name, ""});
    ASSERT_TRUE(op.has_value()) << name;
    EXPECT_TRUE(op->hasKernelForDispatchKey(c10::DispatchKey::CPU)) << name;
  }
}

}  // namespace
}  // namespace lemo::kernels
