#include "kernels/block_select/block_select.h"

#include "kernels/block_select/block_select_internal.h"
#include "tests/gpu/check.h"

namespace lemo::kernels {
namespace {

using namespace ::lemo::testing;  // NOLINT: the harness's vocabulary

GPU_TEST(BlockSelectEqualsReference) {
  Random random(111);
  for (int round = 0; round < 60; ++round) {
    // Few different values, so that ties are the rule; some of them not finite. Up to 2000 blocks.
    const int64_t most = round % 10 == 0 ? 2000 : 60;
    const at::Tensor cuts =
        std::get<0>(random.Integers(0, most, {random.Integers(0, 5, {1}).item<int64_t>()}).sort());
    const int64_t blocks = cuts.numel() == 0 ? 0 : cuts[-1].item<int64_t>();
    const at::Tensor documents = at::cat({at::zeros({1}, at::kLong), cuts});
    at::Tensor scores = random.Integers(-2, 3, {blocks}).to(at::kFloat);
    scores.masked_fill_(random.Integers(0, 9, {blocks}) == 0, round % 2 == 0 ? NAN : -INFINITY);
    const at::Tensor mandatory = (random.Integers(0, 4, {blocks}) == 0).to(at::kByte);
    const at::Tensor counts = random.Integers(-1, most / 2, {cuts.numel()});
    const at::Tensor want = reference::SelectTopBlocks(scores, mandatory, documents, counts);
    const at::Tensor got =
        SelectTopBlocks(Gpu(scores), Gpu(mandatory), Gpu(documents.to(at::kInt)), Gpu(counts));
    CHECK_TENSOR(got, Gpu(want), Tolerance{}, "round " << round);

    const at::Tensor lengths = random.Integers(1, 70, {blocks});
    const at::Tensor starts = at::cat({at::zeros({1}, at::kLong), lengths.cumsum(0)});
    const int64_t rows = (lengths * want).sum().item<int64_t>();
    for (const at::ScalarType type : {at::kInt, at::kLong}) {
      const at::Tensor list = reference::RowsOfBlocks(starts, want, rows, type);
      CHECK_TENSOR(RowsOfBlocks(Gpu(starts), Gpu(want), rows, type), Gpu(list), Tolerance{},
                   "round " << round << " " << type);
      CHECK_TENSOR(RowsOfBlocks(Gpu(starts.to(at::kInt)), Gpu(want), -1, type), Gpu(list),
                   Tolerance{}, "round " << round << " counted");
    }
  }
}

}  // namespace
}  // namespace lemo::kernels
