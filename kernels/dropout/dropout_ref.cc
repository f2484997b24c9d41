#include "kernels/dropout/dropout_internal.h"
#include "kernels/dropout/dropout_mask.h"
#include "kernels/ref.h"

namespace lemo::kernels::reference {

at::Tensor Dropout(const at::Tensor& x, double p, int64_t seed, int64_t stream,
                   const at::Tensor& row_ids, int64_t first_column) {
  CheckDropout(x, p, row_ids);
  const int64_t width = x.size(1);
  const auto values = Values(x);
  const auto ids = Indices(row_ids);
  const double scale = RoundTo(WideType(x.scalar_type()), 1.0 / (1.0 - p));
  std::vector<double> y(values.size());
  for (int64_t n = 0; n < x.size(0); ++n) {
    const uint64_t state = DropoutRowState(seed, stream, ids[n]);
    for (int64_t j = 0; j < width; ++j) {
      const int64_t column = first_column + j;
      const uint64_t word = DropoutWord(state, column / 2);
      const uint32_t bits = static_cast<uint32_t>(column % 2 == 0 ? word : word >> 32);
      y[n * width + j] = bits < DropoutThreshold(p) ? 0.0 : values[n * width + j] * scale;
    }
  }
  return FromValues(y, x.sizes(), x.scalar_type());
}

}  // namespace lemo::kernels::reference
