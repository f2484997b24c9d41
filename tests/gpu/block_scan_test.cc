#include "kernels/block_scan/block_scan.h"

#include "kernels/block_scan/block_scan_internal.h"
#include "tests/gpu/check.h"

namespace lemo::kernels {
namespace {

using namespace ::lemo::testing;  // NOLINT: the harness's vocabulary

GPU_TEST(BlockInformativenessEqualsReference) {
  Random random(91);
  const std::vector<std::pair<std::vector<int32_t>, int64_t>> cases = {
      {{0}, 4},       {{0, 0}, 4},        {{0, 1}, 1}, {{0, 3, 3, 8, 9}, 7},
      {{0, 130}, 64}, {{0, 15, 50}, 100}, {{0, 5}, 0}};
  for (const at::ScalarType type : GpuTypes()) {
    for (const auto& [documents, width] : cases) {
      for (const int64_t combine : {0, 1, 2}) {
        const int64_t blocks = documents.back();
        const at::Tensor q = random.Normal({blocks, width}, type);
        const at::Tensor k = random.Normal({blocks, width}, type);
        const at::Tensor di = random.Normal({blocks}, WideType(type));
        const at::Tensor list = at::tensor(documents, at::kInt);
        const auto mode = static_cast<Combine>(combine);
        // Scans in fp32: errors grow with the sums, which are of 130 rows and 64 columns.
        CHECK_TENSOR(BlockInformativenessForward(Gpu(q), Gpu(k), Gpu(list), mode),
                     Gpu(reference::BlockInformativeness(q, k, list, combine)),
                     ToleranceFor(WideType(type), 130 * 64, 64), type << " combine " << combine);
        auto [dq, dk] =
            BlockInformativenessBackward(Gpu(di), Gpu(q), Gpu(k), Gpu(list.to(at::kLong)), mode);
        auto [want_dq, want_dk] = reference::BlockInformativenessBackward(di, q, k, list, combine);
        CHECK_TENSOR(dq, Gpu(want_dq), ToleranceFor(type, 130, 64), type << " combine " << combine);
        CHECK_TENSOR(dk, Gpu(want_dk), ToleranceFor(type, 130, 64), type << " combine " << combine);
      }
    }
  }
}

GPU_TEST(BlockInformativenessNanStaysInItsDocument) {
  for (const at::ScalarType type : GpuTypes()) {
    at::Tensor q = at::ones({6, 20}, type);
    const at::Tensor k = at::ones({6, 20}, type);
    q[1][17] = NAN;
    const at::Tensor list = at::tensor({0, 3, 6}, at::kInt);
    for (const int64_t combine : {0, 1, 2}) {
      CHECK_TENSOR(
          BlockInformativenessForward(Gpu(q), Gpu(k), Gpu(list), static_cast<Combine>(combine)),
          Gpu(reference::BlockInformativeness(q, k, list, combine)), ToleranceFor(WideType(type)),
          type << " combine " << combine);
    }
  }
}

}  // namespace
}  // namespace lemo::kernels
