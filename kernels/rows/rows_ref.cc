#include "kernels/ref.h"
#include "kernels/rows/rows_internal.h"

namespace lemo::kernels::reference {
namespace {

std::vector<int64_t> RowList(const char* op, const std::optional<at::Tensor>& idx, int64_t rows) {
  std::vector<int64_t> list;
  if (idx) {
    list = Indices(*idx);
  } else {
    for (int64_t r = 0; r < rows; ++r) list.push_back(r);
  }
  CheckRowList(op, list.data(), static_cast<int64_t>(list.size()), rows);
  return list;
}

}  // namespace

at::Tensor GatherRows(const at::Tensor& src, const std::optional<at::Tensor>& idx) {
  CheckGatherRows(src, idx);
  const auto list = RowList("gather_rows", idx, src.size(0));
  const int64_t width = src.size(1);
  const auto values = Values(src);
  std::vector<double> out;
  for (const int64_t row : list) {
    for (int64_t j = 0; j < width; ++j) out.push_back(values[row * width + j]);
  }
  return FromValues(out, {static_cast<int64_t>(list.size()), width}, src.scalar_type());
}

void ScatterAddRows(const at::Tensor& dst, const std::optional<at::Tensor>& idx,
                    const at::Tensor& delta) {
  CheckScatterAddRows(dst, idx, delta);
  const auto list = RowList("scatter_add_rows_", idx, dst.size(0));
  const int64_t width = dst.size(1);
  auto values = Values(dst);
  const auto added = Values(delta);
  for (size_t k = 0; k < list.size(); ++k) {
    for (int64_t j = 0; j < width; ++j) values[list[k] * width + j] += added[k * width + j];
  }
  dst.copy_(FromValues(values, dst.sizes(), dst.scalar_type()));
}

}  // namespace lemo::kernels::reference
