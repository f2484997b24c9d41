#include "kernels/block_scan/block_scan.h"

#include "kernels/block_scan/block_scan_internal.h"
#include "tests/unit/kernels/kernel_test.h"

namespace lemo::kernels {
namespace {

using ::lemo::testing::CpuTypes;
using ::lemo::testing::FiniteDifference;
using ::lemo::testing::FiniteDifferenceTolerance;
using ::lemo::testing::Random;
using ::lemo::testing::Strided;
using ::lemo::testing::Tolerance;
using ::lemo::testing::ToleranceFor;
using ::lemo::testing::WithThreads;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

constexpr Combine kAll[] = {Combine::kSymmetric, Combine::kColumn, Combine::kColumnMean};

at::Tensor Documents(const std::vector<int32_t>& documents) {
  return at::tensor(documents, at::kInt);
}

TEST(BlockScanTest, HandMade) {
  // M = [1 . .; 2 3 .; 4 5 6]; what is above the diagonal must not be read.
  const at::Tensor m =
      at::tensor({1.0, NAN, 9.0, 2.0, 3.0, INFINITY, 4.0, 5.0, 6.0}, at::kDouble).view({3, 3});
  const auto expect = [&m](Combine combine, at::Tensor want) {
    EXPECT_TENSOR(CombineBlockScores(m, combine), want, ToleranceFor(at::kDouble));
  };
  expect(Combine::kSymmetric, at::tensor({7.0 / 3, 10.0 / 3, 5.0}, at::kDouble));
  expect(Combine::kColumn, at::tensor({7.0, 8.0, 6.0}, at::kDouble));
  expect(Combine::kColumnMean, at::tensor({7.0 / 3, 4.0, 6.0}, at::kDouble));
  // Width 1: M_mn = q_m k_n = [3 .; 6 8].
  const at::Tensor q = at::tensor({1.0, 2.0}, at::kDouble).view({2, 1});
  const at::Tensor k = at::tensor({3.0, 4.0}, at::kDouble).view({2, 1});
  const at::Tensor one = Documents({0, 2});
  EXPECT_SAME(BlockInformativeness(q, k, one), at::tensor({4.5, 7.0}, at::kDouble));
  EXPECT_SAME(BlockInformativeness(q, k, one, Combine::kColumn),
              at::tensor({9.0, 8.0}, at::kDouble));
  EXPECT_SAME(BlockInformativeness(q, k, Documents({0, 1, 2})),
              at::tensor({3.0, 8.0}, at::kDouble));
}

TEST(BlockScanTest, EqualsReference) {
  Random random(91);
  const std::vector<std::pair<std::vector<int32_t>, int64_t>> cases = {
      {{0}, 4}, {{0, 0}, 4}, {{0, 1}, 1}, {{0, 3, 3, 8, 9}, 7}, {{0, 130}, 64}, {{0, 5}, 0}};
  for (const at::ScalarType type : CpuTypes()) {
    for (const auto& [documents, width] : cases) {
      for (const Combine combine : kAll) {
        SCOPED_TRACE(::testing::Message() << type << " blocks " << documents.back() << " width "
                                          << width << " combine " << static_cast<int>(combine));
        const int64_t blocks = documents.back();
        const at::Tensor q = random.Normal({blocks, width}, type);
        const at::Tensor k = random.Normal({blocks, width}, type);
        const at::Tensor di = random.Normal({blocks}, WideType(type));
        const at::Tensor list = Documents(documents);
        const auto number = static_cast<int64_t>(combine);
        const at::Tensor got = BlockInformativenessForward(q, k, list, combine);
        EXPECT_TENSOR(got, reference::BlockInformativeness(q, k, list, number),
                      ToleranceFor(WideType(type), 130 * 64, 16));
        auto [dq, dk] = BlockInformativenessBackward(di, q, k, list, combine);
        auto [want_dq, want_dk] = reference::BlockInformativenessBackward(di, q, k, list, number);
        EXPECT_TENSOR(dq, want_dq, ToleranceFor(type, 130, 16));
        EXPECT_TENSOR(dk, want_dk, ToleranceFor(type, 130, 16));
        const at::Tensor wide_list = Strided(list.to(at::kLong));
        EXPECT_SAME(BlockInformativenessForward(Strided(q), Strided(k), wide_list, combine), got);
        auto [strided_dq, strided_dk] =
            BlockInformativenessBackward(Strided(di), Strided(q), Strided(k), wide_list, combine);
        EXPECT_SAME(strided_dq, dq);
        EXPECT_SAME(strided_dk, dk);
      }
    }
  }
}

// C7: linear time against the summed M of every document, 1e-5 relative. Positive vectors, so that
// nothing cancels and "relative" means something.
TEST(BlockScanTest, EqualsSummedScores) {
  Random random(92);
  for (const at::ScalarType type : CpuTypes()) {
    const at::Tensor q = random.Normal({150, 64}, type).abs();
    const at::Tensor k = random.Normal({150, 64}, type).abs();
    const std::vector<int32_t> documents = {0, 40, 41, 150};
    for (const Combine combine : kAll) {
      std::vector<at::Tensor> want;
      for (size_t d = 0; d + 1 < documents.size(); ++d) {
        const auto part = [&](const at::Tensor& t) {
          return t.slice(0, documents[d], documents[d + 1]).to(at::kDouble);
        };
        want.push_back(CombineBlockScores(part(q).mm(part(k).t()), combine));
      }
      EXPECT_TENSOR(BlockInformativeness(q, k, Documents(documents), combine).to(at::kDouble),
                    at::cat(want), (Tolerance{1e-5, 0}));
    }
  }
}

TEST(BlockScanTest, CombineEqualsReference) {
  Random random(93);
  for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
    for (const int64_t count : {0, 1, 2, 65}) {
      const at::Tensor m = random.Normal({count, count}, type);
      for (const Combine combine : kAll) {
        const at::Tensor want = reference::CombineBlockScores(m, static_cast<int64_t>(combine));
        EXPECT_TENSOR(CombineBlockScores(m, combine), want, ToleranceFor(type, 65, 16));
        EXPECT_TENSOR(CombineBlockScores(Strided(m), combine), want, ToleranceFor(type, 65, 16));
      }
    }
  }
}

TEST(BlockScanTest, GradientEqualsFiniteDifferences) {
  Random random(94);
  const at::Tensor q = random.Normal({7, 3}, at::kDouble).requires_grad_();
  const at::Tensor k = random.Normal({7, 3}, at::kDouble).requires_grad_();
  const at::Tensor direction = random.Normal({7}, at::kDouble);
  const at::Tensor list = Documents({0, 4, 7});
  for (const Combine combine : kAll) {
    const auto loss = [&](const at::Tensor& a, const at::Tensor& b) {
      return (BlockInformativeness(a, b, list, combine) * direction).sum();
    };
    const auto ours = torch::autograd::grad({loss(q, k)}, {q, k});
    EXPECT_TENSOR(
        ours[0],
        FiniteDifference([&](const at::Tensor& v) { return loss(v, k.detach()); }, q.detach()),
        FiniteDifferenceTolerance());
    EXPECT_TENSOR(
        ours[1],
        FiniteDifference([&](const at::Tensor& v) { return loss(q.detach(), v); }, k.detach()),
        FiniteDifferenceTolerance());
  }
  EXPECT_FALSE(BlockInformativeness(q.detach(), k.detach(), list).requires_grad());
}

TEST(BlockScanTest, NanStaysInItsDocument) {
  for (const at::ScalarType type : CpuTypes()) {
    at::Tensor q = at::ones({6, 20}, type);
    const at::Tensor k = at::ones({6, 20}, type);
    q[1][17] = NAN;
    const at::Tensor list = Documents({0, 3, 6});
    for (const Combine combine : kAll) {
      const at::Tensor got = BlockInformativeness(q, k, list, combine);
      EXPECT_TENSOR(got, reference::BlockInformativeness(q, k, list, static_cast<int64_t>(combine)),
                    ToleranceFor(WideType(type)));
      EXPECT_EQ(got.isnan().sum().item<int64_t>(), 2);
      EXPECT_FALSE(got.slice(0, 3).isnan().any().item<bool>());
    }
  }
}

TEST(BlockScanTest, ThreadsGiveTheSameBits) {
  Random random(95);
  const at::Tensor q = random.Normal({2000, 64}, at::kFloat);
  const at::Tensor k = random.Normal({2000, 64}, at::kFloat);
  const at::Tensor list = Documents({0, 700, 900, 1500, 2000});
  at::Tensor one, three;
  WithThreads(1, [&] { one = BlockInformativeness(q, k, list); });
  WithThreads(3, [&] { three = BlockInformativeness(q, k, list); });
  EXPECT_SAME(three, one);
}

TEST(BlockScanTest, RefusesWhatItCannotDo) {
  const at::Tensor q = at::ones({4, 2});
  const auto run = [&](const at::Tensor& k, const std::vector<int32_t>& documents) {
    return BlockInformativeness(q, k, Documents(documents));
  };
  EXPECT_THAT(
      [&] {
        run(at::ones({4, 3}), {0, 4});
      },
      ThrowsMessage<c10::Error>(HasSubstr("[4, 3]")));
  EXPECT_THAT(
      [&] {
        run(at::ones({4, 2}, at::kDouble), {0, 4});
      },
      ThrowsMessage<c10::Error>(HasSubstr("Double")));
  EXPECT_THAT([&] { run(q, {0, 3}); }, ThrowsMessage<c10::Error>(HasSubstr("must be 4; it is 3")));
  EXPECT_THAT(
      [&] {
        run(q, {0, 3, 2, 4});
      },
      ThrowsMessage<c10::Error>(HasSubstr("after 3 comes 2")));
  EXPECT_THROW(run(q, {1, 4}), c10::Error);
  EXPECT_THROW(run(q, {}), c10::Error);
  EXPECT_THROW(BlockInformativeness(q, q, Documents({0, 4}), static_cast<Combine>(3)), c10::Error);
  EXPECT_THROW(BlockInformativenessBackward(at::ones({3}), q, q, Documents({0, 4}), kAll[0]),
               c10::Error);
  EXPECT_THROW(CombineBlockScores(at::ones({2, 3})), c10::Error);
  EXPECT_THROW(CombineBlockScores(at::ones({2, 2}, at::kBFloat16)), c10::Error);
}

}  // namespace
}  // namespace lemo::kernels
