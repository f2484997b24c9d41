// One rule for choosing blocks, written twice: on the host for plans, on the device for scores that
// are there. They must never choose differently.
#include "kernels/block_select/block_select.h"
#include "tests/unit/kernels/kernel_test.h"
#include "worker/train/tokens/selection.h"

namespace lemo {
namespace {

using ::lemo::testing::Random;

TEST(BlockSelectRuleTest, HostAndDeviceChooseAlike) {
  Random random(121);
  for (int round = 0; round < 500; ++round) {
    SCOPED_TRACE(::testing::Message() << "round " << round);
    const auto pick = [&](int64_t low, int64_t high) {
      return random.Integers(low, high, {1}).item<int64_t>();
    };
    std::vector<int32_t> document_starts = {0};
    for (int64_t d = pick(1, 4); d > 0; --d) {
      document_starts.push_back(document_starts.back() + static_cast<int32_t>(pick(1, 100)));
    }
    const train::BlockLayout layout = train::MakeBlocks(document_starts, pick(1, 9));
    const int64_t blocks = layout.blocks();
    at::Tensor scores = random.Integers(-3, 4, {blocks}).to(at::kFloat) / 8;
    const float odd = round % 3 == 0 ? NAN : round % 3 == 1 ? INFINITY : -INFINITY;
    scores.masked_fill_(random.Integers(0, 12, {blocks}) == 0, odd);
    train::SelectOptions options;
    options.keep = static_cast<double>(pick(1, 10)) / 10;
    options.sink_blocks = pick(0, 3);
    options.local_blocks = pick(0, 3);
    train::BlockMask always(blocks, 0);
    for (uint8_t& block : always) block = pick(0, 8) == 0;
    const train::BlockChoice want = train::SelectBlocks(
        {scores.const_data_ptr<float>(), static_cast<size_t>(blocks)}, layout, always, options);

    // What the host derives from the options, given to the device as mandatory blocks and counts.
    std::vector<uint8_t> mandatory(always);
    std::vector<int64_t> counts;
    for (size_t d = 0; d + 1 < layout.documents.size(); ++d) {
      const int64_t first = layout.documents[d], last = layout.documents[d + 1];
      for (int64_t n = first; n < last; ++n) {
        mandatory[n] |= n - first < options.sink_blocks || last - n <= options.local_blocks;
      }
      const bool whole = last - first < train::kLeastBlocks || options.keep >= 1;
      const double share = whole ? 1 : options.keep;
      counts.push_back(
          static_cast<int64_t>(std::ceil(share * static_cast<double>(last - first) - 1e-9)));
    }
    const at::Tensor got = kernels::SelectTopBlocks(scores, at::tensor(mandatory, at::kByte),
                                                    at::tensor(layout.documents, at::kInt),
                                                    at::tensor(counts, at::kLong));
    EXPECT_SAME(got, at::tensor(want.kept, at::kByte));
    EXPECT_SAME(kernels::RowsOfBlocks(at::tensor(layout.starts, at::kInt), got,
                                      train::CountRows(layout, want.kept), at::kInt),
                at::tensor(train::RowsOf(layout, want.kept), at::kInt));
  }
}

}  // namespace
}  // namespace lemo
