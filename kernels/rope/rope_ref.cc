#include "kernels/ref.h"
#include "kernels/rope/rope_internal.h"

namespace lemo::kernels::reference {

at::Tensor Rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool inverse) {
  CheckRope(x, cos, sin);
  const int64_t heads = x.size(1);
  const int64_t half = x.size(2) / 2;
  const auto values = Values(x);
  const auto cosines = Values(cos);
  const auto sines = Values(sin);
  std::vector<double> y(values.size());
  for (int64_t n = 0; n < x.size(0); ++n) {
    for (int64_t a = 0; a < heads; ++a) {
      for (int64_t i = 0; i < half; ++i) {
        const int64_t first = (n * heads + a) * 2 * half + i;
        const int64_t second = first + half;
        const double c = cosines[n * half + i];
        const double s = inverse ? -sines[n * half + i] : sines[n * half + i];
        y[first] = values[first] * c - values[second] * s;
        y[second] = values[second] * c + values[first] * s;
      }
    }
  }
  return FromValues(y, x.sizes(), x.scalar_type());
}

}  // namespace lemo::kernels::reference
