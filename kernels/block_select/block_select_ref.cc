#include <cmath>

#include "kernels/block_select/block_select_internal.h"
#include "kernels/ref.h"

namespace lemo::kernels::reference {

at::Tensor SelectTopBlocks(const at::Tensor& scores, const at::Tensor& mandatory,
                           const at::Tensor& documents, const at::Tensor& counts) {
  CheckSelectTopBlocks(scores, mandatory, documents, counts);
  auto values = Values(scores);
  for (double& value : values) value = std::isfinite(value) ? value : INFINITY;
  const auto always = Values(mandatory);
  const auto wanted = Indices(counts);
  const auto list = Indices(documents);
  CheckDocuments("select_top_blocks", list.data(), static_cast<int64_t>(list.size()) - 1,
                 scores.size(0));
  std::vector<double> mask(values.size());
  for (size_t d = 0; d + 1 < list.size(); ++d) {
    int64_t kept = 0;
    for (int64_t n = list[d]; n < list[d + 1]; ++n) {
      mask[n] = always[n] != 0;
      kept += always[n] != 0;
    }
    for (; kept < wanted[d]; ++kept) {
      int64_t best = -1;
      for (int64_t n = list[d]; n < list[d + 1]; ++n) {
        if (mask[n] == 0 && (best < 0 || values[n] > values[best])) best = n;
      }
      if (best < 0) break;
      mask[best] = 1;
    }
  }
  return FromValues(mask, scores.sizes(), at::kByte);
}

at::Tensor RowsOfBlocks(const at::Tensor& starts, const at::Tensor& mask, int64_t rows,
                        at::ScalarType type) {
  CheckRowsOfBlocks(starts, mask, rows, type);
  const auto list = Indices(starts);
  const auto kept = Values(mask);
  CheckStarts("rows_of_blocks", list.data(), mask.size(0), list.back());
  std::vector<double> out;
  for (size_t b = 0; b < kept.size(); ++b) {
    for (int64_t row = list[b]; row < list[b + 1] && kept[b] != 0; ++row) {
      out.push_back(static_cast<double>(row));
    }
  }
  const auto count = static_cast<int64_t>(out.size());
  TORCH_CHECK_VALUE(rows < 0 || rows == count, "rows_of_blocks: rows is ", rows,
                    ", the mask keeps ", count);
  return FromValues(out, {count}, type);
}

}  // namespace lemo::kernels::reference
