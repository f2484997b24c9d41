#include "kernels/cross_entropy/cross_entropy.h"

#include "kernels/cross_entropy/cross_entropy_internal.h"
#include "tests/gpu/check.h"

namespace lemo::kernels {
namespace {

using namespace ::lemo::testing;  // NOLINT: the harness's vocabulary

void Compare(const at::Tensor& logits, const at::Tensor& labels, double scale) {
  const at::ScalarType type = logits.scalar_type();
  const at::Tensor want = logits.clone();
  auto [want_loss, want_correct] = reference::CrossEntropy(want, labels, scale, true);
  for (const auto& move : {Gpu, Unaligned}) {
    const at::Tensor got = move(logits);
    auto [loss, correct] = CrossEntropyInPlace(got, Gpu(labels), {.scale = scale});
    CHECK_TENSOR(loss, Gpu(want_loss), ToleranceFor(loss.scalar_type(), 1024, 1),
                 type << logits.sizes());
    CHECK_TENSOR(correct, Gpu(want_correct), Tolerance{}, type << logits.sizes());
    CHECK_TENSOR(got, Gpu(want), ToleranceFor(type, 1, scale), type << logits.sizes());
    const at::Tensor kept = move(logits);
    auto [eval_loss, eval_correct] = CrossEntropyInPlace(kept, Gpu(labels.to(at::kInt)),
                                                         {.scale = scale, .want_gradient = false});
    CHECK_TENSOR(eval_loss, loss, Tolerance{}, "without gradient");
    CHECK_TENSOR(kept, Gpu(logits), Tolerance{}, "without gradient");
  }
}

GPU_TEST(CrossEntropyEqualsReference) {
  Random random(5);
  for (const at::ScalarType type : GpuTypes()) {
    for (const int64_t rows : {0, 1, 3, 40}) {
      for (const int64_t vocabulary : {1, 2, 31, 512, 1025, 5003, 32000}) {
        const at::Tensor logits = random.Normal({rows, vocabulary}, type, 6);
        at::Tensor labels = random.Integers(0, vocabulary, {rows});
        if (rows > 2) labels[1] = kIgnoreLabel;
        Compare(logits, labels, 1.0 / 37);
      }
    }
    Compare(random.Normal({3, 151936}, type, 60), random.Integers(0, 151936, {3}), 1.0);
    Compare(random.Normal({3, 151936}, type) - 1000, random.Integers(0, 151936, {3}), 1.0);
  }
}

GPU_TEST(CrossEntropyTiesInfAndNan) {
  constexpr float kInf = INFINITY;
  for (const at::ScalarType type : GpuTypes()) {
    for (const int64_t vocabulary : {4, 100, 2100}) {
      at::Tensor logits = at::zeros({8, vocabulary}, type);
      logits[0].fill_(-kInf);
      logits[0][vocabulary - 1] = 1;
      logits[1].fill_(-kInf);
      logits[2][1] = kInf;
      logits[3][vocabulary - 2] = NAN;
      logits[4].fill_(-kInf);
      logits[4][0] = NAN;
      logits[5][2] = -kInf;
      at::Tensor labels = at::zeros({8}, at::kLong);  // row 6: a tie won, row 7: a tie lost
      labels[0] = vocabulary - 1;
      labels[5] = 2;
      labels[7] = vocabulary - 1;
      Compare(logits, labels, 1.0);
    }
  }
}

GPU_TEST(CrossEntropyWrongLabelShowsAsNan) {
  at::Tensor logits = at::ones({3, 9}, at::kCUDA);
  auto [loss, correct] = CrossEntropyInPlace(logits, Gpu(at::tensor({9, -1, 0}, at::kLong)), {});
  const at::Tensor nan_rows = logits.isnan().all(1).cpu();
  CHECK_TRUE(loss.isnan().cpu().equal(at::tensor({true, true, false})), "loss");
  CHECK_TRUE(nan_rows.equal(at::tensor({true, true, false})), "gradient");
  CHECK_TRUE(!correct.slice(0, 0, 2).any().item<bool>(), "correct");
}

GPU_TEST(CrossEntropyBeyond32BitOffsets) {
  if (!HasFreeMemory(int64_t{12} << 30, "CrossEntropyBeyond32BitOffsets")) return;
  constexpr int64_t kVocabulary = 131072;
  constexpr int64_t kRows = (int64_t{1} << 31) / kVocabulary + 3;
  at::Tensor logits =
      at::zeros({kRows, kVocabulary}, at::TensorOptions(at::kCUDA).dtype(at::kHalf));
  auto [loss, correct] = CrossEntropyInPlace(
      logits, at::zeros({kRows}, at::TensorOptions(at::kCUDA).dtype(at::kInt)), {});
  CHECK_TENSOR(loss, at::full({kRows}, std::log(131072.0), loss.options()),
               ToleranceFor(at::kFloat), "every row");
  CHECK_TENSOR(logits[kRows - 1], logits[0], Tolerance{}, "the last row");
}

}  // namespace
}  // namespace lemo::kernels
