#include "kernels/rope/rope.h"

#include "kernels/rope/rope_internal.h"
#include "tests/gpu/check.h"

namespace lemo::kernels {
namespace {

using namespace ::lemo::testing;  // NOLINT: the harness's vocabulary

GPU_TEST(RopeEqualsReference) {
  Random random(3);
  const std::vector<std::vector<int64_t>> shapes = {
      {0, 2, 8}, {1, 1, 2}, {3, 5, 6}, {9, 0, 4}, {65, 3, 34}, {130, 8, 64}, {7, 32, 128}};
  for (const at::ScalarType type : GpuTypes()) {
    for (const auto& shape : shapes) {
      const at::Tensor x = random.Normal(shape, type);
      const at::Tensor angle = random.Normal({shape[0], shape[2] / 2}, at::kDouble, 10);
      const at::Tensor cos = angle.cos().to(WideType(type));
      const at::Tensor sin = angle.sin().to(WideType(type));
      for (const bool inverse : {false, true}) {
        const at::Tensor want = Gpu(reference::Rope(x, cos, sin, inverse));
        const auto tolerance = ToleranceFor(type, 2, 4);
        CHECK_TENSOR(RopeForward(Gpu(x), Gpu(cos), Gpu(sin), inverse), want, tolerance,
                     type << at::IntArrayRef(shape) << inverse);
        CHECK_TENSOR(RopeForward(Unaligned(x), Unaligned(cos), Unaligned(sin), inverse), want,
                     tolerance, "unaligned");
        CHECK_TENSOR(RopeForward(Strided(Gpu(x)), Strided(Gpu(cos)), Gpu(sin), inverse), want,
                     tolerance, "strided");
      }
    }
  }
}

}  // namespace
}  // namespace lemo::kernels
