#include "kernels/block_scores/block_scores.h"

#include "kernels/block_scores/block_scores_internal.h"
#include "tests/gpu/check.h"

namespace lemo::kernels {
namespace {

using namespace ::lemo::testing;  // NOLINT: the harness's vocabulary

struct Case {
  int64_t rows, heads, kv_heads, width, block_rows;
};

GPU_TEST(BlockScoresEqualsReference) {
  Random random(71);
  const std::vector<Case> cases = {
      {0, 2, 1, 4, 64},       {1, 1, 1, 1, 64},     {5, 4, 4, 3, 1},      {130, 4, 2, 64, 64},
      {300, 2, 2, 5, 7},      {333, 6, 2, 16, 48},  {600, 2, 1, 80, 300}, {520, 3, 1, 8, 128},
      {515, 1, 1, 130, 1000}, {257, 4, 1, 32, 256}, {200, 4, 2, 128, 16}};
  for (const at::ScalarType type : GpuTypes()) {
    for (const Case& c : cases) {
      const at::Tensor q = random.Normal({c.rows, c.heads, c.width}, type);
      const at::Tensor k = random.Normal({c.rows, c.kv_heads, c.width}, type);
      const double scale = 1 / std::sqrt(static_cast<double>(c.width));
      const at::Tensor want = reference::BlockScores(q, k, c.block_rows, scale).to(at::kCUDA);
      const auto tolerance =
          ToleranceFor(WideType(type), static_cast<double>(c.width * c.heads), 8);
      CHECK_TENSOR(BlockScores(Gpu(q), Gpu(k), c.block_rows, scale), want, tolerance,
                   type << " rows " << c.rows << " blocks of " << c.block_rows);
      CHECK_TENSOR(BlockScores(Unaligned(q), Unaligned(k), c.block_rows, scale), want, tolerance,
                   type << " unaligned, rows " << c.rows << " blocks of " << c.block_rows);
      CHECK_TENSOR(BlockScores(Strided(Gpu(q)), Strided(Gpu(k)), c.block_rows, scale), want,
                   tolerance, type << " strided");
    }
  }
}

GPU_TEST(BlockScoresNanAndInf) {
  for (const at::ScalarType type : GpuTypes()) {
    at::Tensor q = at::ones({600, 2, 4}, type);
    at::Tensor k = at::ones({600, 2, 4}, type);
    k[70][1][2] = NAN;
    k[599][0][0] = NAN;
    q[300][0][0] = INFINITY;
    q[400][0][0] = -INFINITY;
    for (const int64_t block_rows : {64, 48, 100}) {
      CHECK_TENSOR(BlockScores(Gpu(q), Gpu(k), block_rows, 0.5),
                   Gpu(reference::BlockScores(q, k, block_rows, 0.5)), Tolerance{},
                   type << " blocks of " << block_rows);
    }
  }
}

}  // namespace
}  // namespace lemo::kernels
