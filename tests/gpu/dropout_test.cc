#include "kernels/dropout/dropout.h"

#include "kernels/dropout/dropout_internal.h"
#include "tests/gpu/check.h"

namespace lemo::kernels {
namespace {

using namespace ::lemo::testing;  // NOLINT: the harness's vocabulary

GPU_TEST(DropoutEqualsReference) {
  Random random(6);
  for (const at::ScalarType type : GpuTypes()) {
    for (const int64_t rows : {0, 1, 5, 900}) {
      for (const int64_t width : {0, 1, 2, 7, 256, 257, 4096}) {
        const at::Tensor x = random.Normal({rows, width}, type);
        const at::Tensor ids = random.Integers(-5, int64_t{1} << 40, {rows});
        const DropoutKey key{.seed = -9, .stream = 77};
        const at::Tensor want = Gpu(reference::Dropout(x, 0.3, key.seed, key.stream, ids));
        // The same mask, and one product rounded once: bit for bit.
        CHECK_TENSOR(Dropout(Gpu(x), 0.3, key, Gpu(ids)), want, Tolerance{}, type << rows << width);
        CHECK_TENSOR(Dropout(Unaligned(x), 0.3, key, Gpu(ids)), want, Tolerance{}, "unaligned");
        CHECK_TENSOR(Dropout(Strided(Gpu(x)), 0.3, key, Strided(Gpu(ids))), want, Tolerance{},
                     "strided");
      }
    }
  }
}

}  // namespace
}  // namespace lemo::kernels
