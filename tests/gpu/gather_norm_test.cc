#include "kernels/gather_norm/gather_norm.h"

#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rows/rows.h"
#include "tests/gpu/check.h"

namespace lemo::kernels {
namespace {

using namespace ::lemo::testing;  // NOLINT: the harness's vocabulary

constexpr double kEps = 1e-5;

// The two ops are compared with the reference in their own tests.
GPU_TEST(GatherNormEqualsTheTwoOpsInEveryBit) {
  Random random(101);
  for (const at::ScalarType type : GpuTypes()) {
    for (const int64_t rows : {0, 1, 300}) {
      for (const int64_t width : {1, 33, 64, 1024, 1025, 4096}) {
        at::Tensor src = random.Normal({rows, width}, type, 3);
        if (rows == 300) {
          src[7][width - 1] = NAN;
          src[8][0] = INFINITY;
        }
        const at::Tensor weight = random.Normal({width}, type);
        const at::Tensor idx = random.RowList(rows).to(rows % 2 == 0 ? at::kInt : at::kLong);
        for (const bool aligned : {true, false}) {
          const auto move = [&](const at::Tensor& t) { return aligned ? Gpu(t) : Unaligned(t); };
          for (const auto& list : {std::optional(Gpu(idx)), std::optional<at::Tensor>()}) {
            const at::Tensor from = move(src);
            const NormedRows got = GatherRmsNorm(from, list, move(weight), kEps);
            const at::Tensor x = GatherRows(from, list);
            const auto [y, rstd] = RmsNormForward(aligned ? x : Unaligned(x), move(weight), kEps);
            CHECK_TENSOR(got.x, x, Tolerance{}, type << rows << "x" << width << aligned);
            CHECK_TENSOR(got.y, y, Tolerance{}, type << rows << "x" << width << aligned);
            CHECK_TENSOR(got.rstd, rstd, Tolerance{}, type << rows << "x" << width << aligned);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace lemo::kernels
