#include "kernels/cross_entropy/cross_entropy.h"

#include "kernels/cross_entropy/cross_entropy_internal.h"
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

// Runs both on copies and compares all three results.
void ExpectEqualsReference(const at::Tensor& logits, const at::Tensor& labels, double scale) {
  const at::ScalarType type = logits.scalar_type();
  const at::Tensor got = logits.clone();
  const at::Tensor want = logits.clone();
  auto [loss, correct] = CrossEntropyInPlace(got, labels, {.scale = scale});
  auto [want_loss, want_correct] = reference::CrossEntropy(want, labels, scale, true);
  // The sum's terms are at most 1; the loss is a difference of numbers near the largest logit.
  EXPECT_TENSOR(loss, want_loss, ToleranceFor(loss.scalar_type(), 1024, 1));
  EXPECT_SAME(correct, want_correct);
  EXPECT_TENSOR(got, want, ToleranceFor(type, 1, std::abs(scale)));

  const at::Tensor kept = logits.clone();
  auto [eval_loss, eval_correct] =
      CrossEntropyInPlace(kept, Strided(labels), {.scale = scale, .want_gradient = false});
  EXPECT_SAME(eval_loss, loss);
  EXPECT_SAME(eval_correct, correct);
  EXPECT_SAME(kept, logits);
}

TEST(CrossEntropyTest, HandMade) {
  at::Tensor logits = at::tensor({0.0, std::log(3.0), 1.0, 1.0}, at::kDouble).view({2, 2});
  auto [loss, correct] = CrossEntropyInPlace(logits, at::tensor({1, 1}, at::kLong), {.scale = 0.5});
  EXPECT_TENSOR(loss, at::tensor({std::log(4.0 / 3.0), std::log(2.0)}, at::kDouble),
                ToleranceFor(at::kDouble));
  EXPECT_TENSOR(logits, at::tensor({0.125, -0.125, 0.25, -0.25}, at::kDouble).view({2, 2}),
                ToleranceFor(at::kDouble));
  EXPECT_TRUE(correct[0].item<bool>());
  EXPECT_FALSE(correct[1].item<bool>()) << "index 0 is the lowest of the tie";
}

TEST(CrossEntropyTest, EqualsReference) {
  Random random(41);
  for (const at::ScalarType type : CpuTypes()) {
    for (const int64_t rows : {0, 1, 3, 40}) {
      for (const int64_t vocabulary : {1, 2, 31, 32, 33, 1024, 1025, 5003}) {
        SCOPED_TRACE(::testing::Message() << type << " " << rows << "x" << vocabulary);
        const at::Tensor logits = random.Normal({rows, vocabulary}, type, 6);
        at::Tensor labels = random.Integers(0, vocabulary, {rows});
        if (rows > 2) labels[1] = kIgnoreLabel;
        ExpectEqualsReference(logits, labels, 1.0 / 37);
        ExpectEqualsReference(logits, labels.to(at::kInt), 1.0);
      }
    }
  }
}

TEST(CrossEntropyTest, LargeVocabularyAndLargeLogits) {
  Random random(42);
  for (const at::ScalarType type : CpuTypes()) {
    const at::Tensor labels = random.Integers(0, 151936, {3});
    ExpectEqualsReference(random.Normal({3, 151936}, type), labels, 1.0);
    ExpectEqualsReference(random.Normal({3, 151936}, type, 60), labels, 1.0);
    ExpectEqualsReference(random.Normal({3, 151936}, type) + 1000, labels, 1.0);
    ExpectEqualsReference(random.Normal({3, 151936}, type) - 1000, labels, 1.0);
  }
}

TEST(CrossEntropyTest, SumInFp32KeepsSixDigitsForAnyVocabulary) {
  // Equal logits: softmax is 1/V and the loss log V, so every error of the sum shows.
  for (const int64_t vocabulary : {1000, 32000, 256000}) {
    at::Tensor logits = at::full({1, vocabulary}, 0.3f);
    auto [loss, correct] = CrossEntropyInPlace(logits, at::zeros({1}, at::kLong), {});
    EXPECT_NEAR(loss.item<double>() / std::log(static_cast<double>(vocabulary)), 1, 1e-7);
    EXPECT_NEAR(logits[0][1].item<double>() * static_cast<double>(vocabulary), 1, 1e-6);
    EXPECT_TRUE(correct.item<bool>());
  }
}

TEST(CrossEntropyTest, TiesAnywhereTakeTheLowestIndex) {
  for (const int64_t vocabulary : {5, 70, 3000}) {
    for (const int64_t label : {int64_t{0}, int64_t{3}, vocabulary - 1}) {
      at::Tensor logits = at::zeros({2, vocabulary});
      logits[0][label] = 2;          // the only largest
      logits.select(0, 1).fill_(1);  // a tie of all
      auto [loss, correct] = CrossEntropyInPlace(logits, at::full({2}, label, at::kLong), {});
      EXPECT_TRUE(correct[0].item<bool>());
      EXPECT_EQ(correct[1].item<bool>(), label == 0);
    }
  }
}

TEST(CrossEntropyTest, InfAndNan) {
  constexpr float kInf = INFINITY;
  for (const at::ScalarType type : CpuTypes()) {
    for (const int64_t vocabulary : {4, 100, 2100}) {
      SCOPED_TRACE(::testing::Message() << type << " " << vocabulary);
      at::Tensor logits = at::zeros({7, vocabulary}, type);
      logits[0].fill_(-kInf);
      logits[0][vocabulary - 1] = 1;  // only the last is finite: the first blocks are all -Inf
      logits[1].fill_(-kInf);
      logits[2][1] = kInf;
      logits[3][vocabulary - 2] = NAN;
      logits[4].fill_(-kInf);
      logits[4][0] = NAN;
      logits[5][2] = -kInf;  // label on -Inf: infinite loss, finite gradient
      logits[6].fill_(1e30);
      at::Tensor labels = at::zeros({7}, at::kLong);
      labels[0] = vocabulary - 1;
      labels[5] = 2;
      ExpectEqualsReference(logits, labels, 1.0);
      auto [loss, correct] = CrossEntropyInPlace(logits, labels, {});
      EXPECT_EQ(loss[0].item<double>(), 0);
      for (const int64_t row : {1, 2, 3, 4}) {
        EXPECT_TRUE(loss[row].isnan().item<bool>()) << row;
        EXPECT_TRUE(logits[row].isnan().all().item<bool>()) << row;
        EXPECT_FALSE(correct[row].item<bool>()) << row;
      }
      EXPECT_EQ(loss[5].item<double>(), INFINITY);
      EXPECT_FALSE(logits[5].isnan().any().item<bool>());
    }
  }
}

TEST(CrossEntropyTest, IgnoredRowsAreZeroEvenIfTheyHoldNan) {
  at::Tensor logits = at::full({2, 40}, NAN);
  auto [loss, correct] = CrossEntropyInPlace(logits, at::full({2}, kIgnoreLabel, at::kInt), {});
  EXPECT_SAME(loss, at::zeros({2}));
  EXPECT_SAME(correct, at::zeros({2}, at::kBool));
  EXPECT_SAME(logits, at::zeros({2, 40}));
}

TEST(CrossEntropyTest, GradientEqualsFiniteDifferencesAndPlainAutograd) {
  Random random(43);
  const at::Tensor logits = random.Normal({3, 7}, at::kDouble, 2);
  const at::Tensor labels = at::tensor({6, -100, 0}, at::kLong);
  at::Tensor gradient = logits.clone();
  auto [loss, correct] = CrossEntropyInPlace(gradient, labels, {.scale = 0.25});
  const auto total = [&](const at::Tensor& v) {
    return std::get<0>(CrossEntropyInPlace(v.clone(), labels, {.want_gradient = false})).sum() *
           0.25;
  };
  EXPECT_TENSOR(gradient, FiniteDifference(total, logits), FiniteDifferenceTolerance());

  const at::Tensor leaf = logits.clone().requires_grad_();
  const at::Tensor plain = at::cross_entropy_loss(leaf, labels, {}, at::Reduction::Sum) * 0.25;
  plain.backward();
  EXPECT_TENSOR(gradient, leaf.grad(), ToleranceFor(at::kDouble));
  EXPECT_NEAR(loss.sum().item<double>() * 0.25, plain.item<double>(), 1e-14);
}

TEST(CrossEntropyTest, TilesAndThreadsGiveTheSameBits) {
  Random random(44);
  for (const at::ScalarType type : CpuTypes()) {
    const at::Tensor logits = random.Normal({60, 1037}, type);
    const at::Tensor labels = random.Integers(0, 1037, {60});
    const at::Tensor all = logits.clone();
    auto [loss, correct] = CrossEntropyInPlace(all, labels, {});
    const at::Tensor tile = logits.slice(0, 21, 50).clone();
    auto [tile_loss, tile_correct] = CrossEntropyInPlace(tile, labels.slice(0, 21, 50), {});
    EXPECT_SAME(tile_loss, loss.slice(0, 21, 50));
    EXPECT_SAME(tile, all.slice(0, 21, 50));
    WithThreads(1, [&, loss = loss] {
      const at::Tensor one = logits.clone();
      EXPECT_SAME(std::get<0>(CrossEntropyInPlace(one, labels, {})), loss);
      EXPECT_SAME(one, all);
    });
  }
}

// Of some of a vocabulary's words: labels may be elsewhere.
TEST(CrossEntropyPartTest, EqualsReference) {
  Random random(45);
  for (const at::ScalarType type : CpuTypes()) {
    for (const int64_t rows : {0, 1, 40}) {
      for (const int64_t columns : {0, 1, 2, 31, 33, 1025, 5003}) {
        SCOPED_TRACE(::testing::Message() << type << " " << rows << "x" << columns);
        const at::Tensor logits = random.Normal({rows, columns}, type, 6);
        const at::Tensor labels = random.Integers(-3, columns + 3, {rows});
        const at::Tensor got = CrossEntropyStatistics(logits, Strided(labels));
        const at::Tensor want = reference::Statistics(logits, labels);
        for (const int64_t exact : {0, 2, 3}) EXPECT_SAME(got[exact], want[exact]);
        EXPECT_TENSOR(got[1].to(WideType(type)), want[1].to(WideType(type)),
                      ToleranceFor(WideType(type), 1024, 1));
        // As if other parts had larger logits and more words.
        const at::Tensor largest = (want[0].clamp_min(-1) + 1).to(type).to(at::kDouble);
        const at::Tensor total = want[1] + 2;
        const at::Tensor gradient = logits.clone(), want_gradient = logits.clone();
        CrossEntropyGradientInPlace(gradient, labels, Strided(largest), total, 0.5);
        reference::Gradient(want_gradient, labels, largest, total, 0.5);
        EXPECT_TENSOR(gradient, want_gradient, ToleranceFor(type, 1, 0.5));
      }
    }
  }
}

TEST(CrossEntropyPartTest, OfAllWordsIsTheWhole) {
  Random random(46);
  for (const at::ScalarType type : CpuTypes()) {
    const at::Tensor logits = random.Normal({20, 1037}, type, 3);
    const at::Tensor labels = random.Integers(0, 1037, {20});
    const at::Tensor statistics = CrossEntropyStatistics(logits, labels);
    const at::Tensor whole = logits.clone(), part = logits.clone();
    const auto [loss, correct] = CrossEntropyInPlace(whole, labels, {.scale = 0.1});
    CrossEntropyGradientInPlace(part, labels, statistics[0], statistics[1], 0.1);
    EXPECT_SAME(part, whole);
    EXPECT_SAME((statistics[1].log() + (statistics[0] - statistics[2])).to(loss.scalar_type()),
                loss);
    EXPECT_SAME(statistics[3].eq(labels), correct);
  }
}

TEST(CrossEntropyPartTest, InfAndNan) {
  const double inf = INFINITY;
  at::Tensor logits =
      at::tensor({-inf, -inf, -inf, NAN, NAN, NAN, -inf, 2.0, 2.0, inf, 1.0, 1.0, NAN, 3.0, -inf},
                 at::kDouble)
          .view({5, 3});
  for (const at::ScalarType type : CpuTypes()) {
    const at::Tensor of = logits.to(type);
    const at::Tensor got = CrossEntropyStatistics(of, at::tensor({0, 7, 1, 0, -1}, at::kLong));
    EXPECT_SAME(got[0], at::tensor({-inf, -inf, 2.0, inf, 3.0}, at::kDouble));
    EXPECT_EQ(got[1][0].item<double>(), 0.0);
    EXPECT_EQ(got[1][2].item<double>(), 2.0);
    for (const int64_t row : {1, 3, 4}) EXPECT_TRUE(std::isnan(got[1][row].item<double>())) << row;
    EXPECT_SAME(got[2], at::tensor({-inf, 0.0, 2.0, inf, 0.0}, at::kDouble));
    EXPECT_SAME(got[3], at::tensor({0.0, 0.0, 1.0, 0.0, 1.0}, at::kDouble));
  }
}

TEST(CrossEntropyPartTest, RefusesWhatItCannotDo) {
  const at::Tensor labels = at::zeros({2}, at::kLong), rows = at::ones({2}, at::kDouble);
  EXPECT_THROW(CrossEntropyStatistics(at::ones({5, 2}).t(), labels), c10::Error);
  EXPECT_THROW(CrossEntropyStatistics(at::ones({3, 5}), labels), c10::Error);
  at::Tensor logits = at::ones({2, 5});
  EXPECT_THROW(CrossEntropyGradientInPlace(logits, labels, rows, at::ones({2}), 1), c10::Error);
  EXPECT_THROW(CrossEntropyGradientInPlace(logits, labels, at::ones({3}, at::kDouble), rows, 1),
               c10::Error);
  EXPECT_SAME(logits, at::ones({2, 5}));
}

TEST(CrossEntropyTest, RefusesBadLabelsAndLeavesLogitsUntouched) {
  for (const int64_t bad : {int64_t{-1}, int64_t{5}, int64_t{-99}, int64_t{1} << 40}) {
    at::Tensor logits = at::ones({2, 5});
    EXPECT_THAT(
        [&] {
          CrossEntropyInPlace(logits, at::tensor({int64_t{0}, bad}, at::kLong), {});
        },
        ThrowsMessage<c10::IndexError>(HasSubstr("labels[1]")));
    EXPECT_SAME(logits, at::ones({2, 5}));
  }
}

TEST(CrossEntropyTest, RefusesWhatItCannotDo) {
  at::Tensor logits = at::ones({2, 5});
  const at::Tensor labels = at::zeros({2}, at::kLong);
  EXPECT_THROW(CrossEntropyInPlace(logits, at::zeros({3}, at::kLong), {}), c10::Error);
  EXPECT_THROW(CrossEntropyInPlace(logits, at::zeros({2}), {}), c10::Error);
  EXPECT_THROW(CrossEntropyInPlace(at::ones({2, 0}), labels, {}), c10::Error);
  EXPECT_THROW(CrossEntropyInPlace(at::ones({5, 2}).t(), labels, {}), c10::Error);
  EXPECT_THROW(CrossEntropyInPlace(at::ones({2, 5}, at::kInt), labels, {}), c10::Error);
  EXPECT_THAT(
      [&] {
        CrossEntropyInPlace(at::ones({2, 5}).requires_grad_(), labels, {});
      },
      ThrowsMessage<c10::Error>(HasSubstr("not differentiable")));
}

}  // namespace
}  // namespace lemo::kernels
