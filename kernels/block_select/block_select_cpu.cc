// Adds to the reference: a partial sort of a document's free blocks, and rows written in runs.
#include <ATen/ATen.h>

#include <cmath>
#include <numeric>

#include "kernels/block_select/block_select_internal.h"
#include "kernels/cpu_simd.h"

namespace lemo::kernels::cpu {
namespace {

std::vector<int64_t> List(const at::Tensor& tensor) {
  const at::Tensor wide = tensor.to(at::kLong).contiguous();
  const auto* data = wide.const_data_ptr<int64_t>();
  return {data, data + wide.numel()};
}

}  // namespace

at::Tensor SelectTopBlocks(const at::Tensor& scores_any, const at::Tensor& mandatory_any,
                           const at::Tensor& documents_any, const at::Tensor& counts_any) {
  CheckSelectTopBlocks(scores_any, mandatory_any, documents_any, counts_any);
  const at::Tensor scores = scores_any.contiguous();
  const at::Tensor mandatory = mandatory_any.contiguous();
  const auto documents = List(documents_any);
  const auto counts = List(counts_any);
  CheckDocuments("select_top_blocks", documents.data(), static_cast<int64_t>(documents.size()) - 1,
                 scores.numel());
  const auto* score = scores.const_data_ptr<float>();
  const auto* always = mandatory.const_data_ptr<uint8_t>();
  at::Tensor mask = at::empty(scores.sizes(), mandatory.options());
  auto* kept = mask.mutable_data_ptr<uint8_t>();
  const auto key = [score](int64_t n) {
    return std::isfinite(score[n]) ? score[n] : std::numeric_limits<float>::infinity();
  };
  std::vector<int64_t> free;
  for (size_t d = 0; d + 1 < documents.size(); ++d) {
    free.clear();
    for (int64_t n = documents[d]; n < documents[d + 1]; ++n) {
      kept[n] = always[n] != 0;
      if (always[n] == 0) free.push_back(n);
    }
    const auto present = static_cast<int64_t>(free.size());
    const int64_t have = documents[d + 1] - documents[d] - present;
    const int64_t best = std::clamp<int64_t>(counts[d] - have, 0, present);
    std::nth_element(free.begin(), free.begin() + best, free.end(), [&](int64_t a, int64_t b) {
      return key(a) > key(b) || (key(a) == key(b) && a < b);
    });
    for (int64_t i = 0; i < best; ++i) kept[free[i]] = 1;
  }
  return mask;
}

at::Tensor RowsOfBlocks(const at::Tensor& starts_any, const at::Tensor& mask_any, int64_t rows,
                        at::ScalarType type) {
  CheckRowsOfBlocks(starts_any, mask_any, rows, type);
  const auto starts = List(starts_any);
  const at::Tensor mask = mask_any.contiguous();
  const auto* kept = mask.const_data_ptr<uint8_t>();
  CheckStarts("rows_of_blocks", starts.data(), mask.numel(), starts.back());
  int64_t count = 0;
  for (int64_t b = 0; b < mask.numel(); ++b) count += kept[b] ? starts[b + 1] - starts[b] : 0;
  TORCH_CHECK_VALUE(rows < 0 || rows == count, "rows_of_blocks: rows is ", rows,
                    ", the mask keeps ", count);
  at::Tensor out = at::empty({count}, mask.options().dtype(type));
  DispatchIndex(type, [&](auto element) {
    using Index = decltype(element);
    auto* to = out.mutable_data_ptr<Index>();
    for (int64_t b = 0; b < mask.numel(); ++b) {
      if (kept[b] == 0) continue;
      std::iota(to, to + (starts[b + 1] - starts[b]), static_cast<Index>(starts[b]));
      to += starts[b + 1] - starts[b];
    }
  });
  return out;
}

}  // namespace lemo::kernels::cpu
