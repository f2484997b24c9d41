#include "kernels/block_pool/block_pool.h"

#include "kernels/block_pool/block_pool_internal.h"
#include "tests/gpu/check.h"

namespace lemo::kernels {
namespace {

using namespace ::lemo::testing;  // NOLINT: the harness's vocabulary

GPU_TEST(BlockMeanMaxEqualsReference) {
  Random random(81);
  const std::vector<std::pair<std::vector<int32_t>, int64_t>> cases = {
      {{0}, 8},      {{0, 1}, 1},        {{0, 64, 128, 130}, 33}, {{0, 64, 70, 134}, 128},
      {{0, 500}, 7}, {{0, 1, 2, 3}, 16}, {{0, 5, 9}, 0}};
  for (const at::ScalarType type : GpuTypes()) {
    for (const auto& [starts, width] : cases) {
      for (const bool scaled : {false, true}) {
        const int64_t rows = starts.back();
        const auto blocks = static_cast<int64_t>(starts.size()) - 1;
        // Few different values, so that maxima tie.
        const at::Tensor u = random.Normal({rows, width}, at::kDouble, 2).round().to(type);
        const at::Tensor scale = random.Normal({rows}, WideType(type)).abs().round() + 1;
        const auto given = scaled ? std::optional(scale) : std::nullopt;
        const auto moved = scaled ? std::optional(Gpu(scale)) : std::nullopt;
        const at::Tensor list = at::tensor(starts, at::kInt);
        const at::Tensor dz = random.Normal({blocks, 2 * width}, WideType(type));
        CHECK_TENSOR(BlockMeanMaxForward(Gpu(u), Gpu(list), moved),
                     Gpu(reference::BlockMeanMax(u, list, given)),
                     ToleranceFor(WideType(type), 500, 8), type << " rows " << rows);
        CHECK_TENSOR(BlockMeanMaxBackward(Gpu(dz), Gpu(u), Gpu(list.to(at::kLong)), moved),
                     Gpu(reference::BlockMeanMaxBackward(dz, u, list, given)),
                     ToleranceFor(type, 4, 16), type << " rows " << rows);
        CHECK_TENSOR(BlockMeanMaxForward(Strided(Gpu(u)), Strided(Gpu(list)), moved),
                     Gpu(reference::BlockMeanMax(u, list, given)),
                     ToleranceFor(WideType(type), 500, 8), type << " strided, rows " << rows);
      }
    }
  }
}

GPU_TEST(BlockMeanMaxNanAndInf) {
  for (const at::ScalarType type : GpuTypes()) {
    at::Tensor u = at::ones({6, 40}, type);
    u[1][3] = NAN;
    u[4][5] = INFINITY;
    u[5][6] = -INFINITY;
    const at::Tensor list = at::tensor({0, 3, 6}, at::kInt);
    const at::Tensor dz = at::ones({2, 80}, WideType(type));
    CHECK_TENSOR(BlockMeanMaxForward(Gpu(u), Gpu(list), std::nullopt),
                 Gpu(reference::BlockMeanMax(u, list, std::nullopt)), ToleranceFor(WideType(type)),
                 type);
    CHECK_TENSOR(BlockMeanMaxBackward(Gpu(dz), Gpu(u), Gpu(list), std::nullopt),
                 Gpu(reference::BlockMeanMaxBackward(dz, u, list, std::nullopt)),
                 ToleranceFor(type), type);
  }
}

}  // namespace
}  // namespace lemo::kernels
