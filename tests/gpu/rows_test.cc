#include "kernels/rows/rows.h"

#include "kernels/rows/rows_internal.h"
#include "tests/gpu/check.h"

namespace lemo::kernels {
namespace {

using namespace ::lemo::testing;  // NOLINT: the harness's vocabulary

GPU_TEST(RowsEqualReference) {
  Random random(2);
  for (const at::ScalarType type : GpuTypes()) {
    for (const int64_t rows : {0, 1, 5, 3000}) {
      for (const int64_t width : {0, 1, 7, 64, 1001, 4096}) {
        const at::Tensor src = random.Normal({rows, width}, type);
        const at::Tensor idx = random.RowList(rows);
        const at::Tensor delta = random.Normal({idx.size(0), width}, type);
        at::Tensor want = src.clone();
        reference::ScatterAddRows(want, idx, delta);
        const at::Tensor gathered = reference::GatherRows(src, idx);
        for (const at::ScalarType index : {at::kInt, at::kLong}) {
          const at::Tensor list = Gpu(idx.to(index));
          CHECK_TENSOR(GatherRows(Gpu(src), list), Gpu(gathered), Tolerance{},
                       type << rows << width);
          CHECK_TENSOR(GatherRows(Unaligned(src), list), Gpu(gathered), Tolerance{}, "unaligned");
          CHECK_TENSOR(GatherRows(Strided(Gpu(src)), list), Gpu(gathered), Tolerance{}, "strided");
          const at::Tensor dst = Gpu(src);
          ScatterAddRows(dst, list, Gpu(delta));
          CHECK_TENSOR(dst, Gpu(want), Tolerance{}, type << rows << width);
          const at::Tensor unaligned = Unaligned(src);
          ScatterAddRows(unaligned, list, Strided(Gpu(delta)));
          CHECK_TENSOR(unaligned, Gpu(want), Tolerance{}, "unaligned");
        }
        const at::Tensor all = Gpu(src);
        ScatterAddRows(all, std::nullopt, Gpu(src));
        CHECK_TENSOR(all, Gpu(src * 2), Tolerance{}, "all rows");
        CHECK_TENSOR(GatherRows(Gpu(src), std::nullopt), Gpu(src), Tolerance{}, "all rows");
      }
    }
  }
}

GPU_TEST(RowsOutOfRangeShowAsNanAndAreNotWritten) {
  const at::Tensor src = at::ones({4, 6}, at::kCUDA);
  const at::Tensor idx = Gpu(at::tensor({-1, 2, 4}, at::kLong));
  const at::Tensor out = GatherRows(src, idx).cpu();
  CHECK_TRUE(out[0].isnan().all().item<bool>() && out[2].isnan().all().item<bool>(), "gather");
  CHECK_TRUE(out[1].eq(1).all().item<bool>(), "gather");
  ScatterAddRows(src, idx, at::ones({3, 6}, at::kCUDA));
  const at::Tensor want = at::ones({4, 6});
  want[2] += 1;
  CHECK_TENSOR(src, Gpu(want), Tolerance{}, "scatter");
}

GPU_TEST(RowsBeyond32BitOffsets) {
  if (!HasFreeMemory(int64_t{12} << 30, "RowsBeyond32BitOffsets")) return;
  constexpr int64_t kWidth = 4096;
  constexpr int64_t kRows = (int64_t{1} << 31) / kWidth + 5;
  const at::Tensor src =
      at::zeros({kRows, kWidth}, at::TensorOptions(at::kCUDA).dtype(at::kBFloat16));
  const at::Tensor last = Gpu(at::tensor({kRows - 1}, at::kLong));
  ScatterAddRows(src, last, at::ones({1, kWidth}, src.options()));
  CHECK_TRUE(src[kRows - 1].eq(1).all().item<bool>(), "scatter");
  CHECK_TRUE(GatherRows(src, last).eq(1).all().item<bool>(), "gather");
  CHECK_TRUE(src.sum(at::kDouble).item<double>() == kWidth, "nothing else written");
}

}  // namespace
}  // namespace lemo::kernels
