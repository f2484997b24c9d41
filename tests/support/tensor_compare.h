// Comparing tensors so that NaN fails: positions of NaN and signed Inf must agree first, then every
// finite entry must satisfy !(error > tolerance).
#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <sstream>
#include <string>

namespace lemo::testing {

// |actual - expected| <= relative * |expected| + absolute.
struct Tolerance {
  double relative = 0;
  double absolute = 0;
};

// Half the spacing of numbers near 1: the relative error of one rounding.
inline double UnitRoundoff(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return std::ldexp(1, -53);
    case at::kFloat:
      return std::ldexp(1, -24);
    case at::kHalf:
      return std::ldexp(1, -11);
    default:  // bfloat16
      return std::ldexp(1, -8);
  }
}

// The tolerance for results of `type` that an op computes in fp32 (fp64 for fp64) from sums of
// `terms` terms no larger than `magnitude`, against a reference that computes in fp64:
//
//   relative  4 u(type): a difference far below u(type) can push a value over a rounding border,
//   which
//             moves it by one spacing, 2 u; twice, because rms_norm rounds twice. Plus 32 u(wide):
//             a chain of at most 16 operations, each 1 u, with an exp of 4 u and room of 2.
//   absolute  (32 + sqrt(terms)) u(wide) magnitude: rounding errors of a sum add up like a random
//   walk,
//             and what cancels in the result keeps the error of its terms.
//
// fp64 is compared with a reference that has the same error: both get 8 times more room.
inline Tolerance ToleranceFor(at::ScalarType type, double terms = 1, double magnitude = 1) {
  const double wide =
      UnitRoundoff(type == at::kDouble ? at::kDouble : at::kFloat) * (type == at::kDouble ? 8 : 1);
  const double own = type == at::kDouble || type == at::kFloat ? 0 : UnitRoundoff(type);
  return {4 * own + 32 * wide, (32 + std::sqrt(terms)) * wide * magnitude};
}

// Empty when `actual` has the type and shape of `expected` and agrees within `tolerance`; otherwise
// the first entry that does not, the worst one, and how many there are.
inline std::string Mismatch(const at::Tensor& actual, const at::Tensor& expected,
                            Tolerance tolerance = {}) {
  std::ostringstream out;
  if (!actual.defined() || !expected.defined()) {
    if (actual.defined() != expected.defined()) out << "one tensor is undefined";
    return out.str();
  }
  if (actual.scalar_type() != expected.scalar_type() || actual.sizes() != expected.sizes()) {
    out << actual.scalar_type() << " " << actual.sizes() << " instead of " << expected.scalar_type()
        << " " << expected.sizes();
    return out.str();
  }
  const at::Tensor a = actual.detach().cpu().to(at::kDouble).contiguous();
  const at::Tensor e = expected.detach().cpu().to(at::kDouble).contiguous();
  const double* got = a.const_data_ptr<double>();
  const double* want = e.const_data_ptr<double>();
  int64_t first = -1;
  int64_t worst = -1;
  int64_t count = 0;
  double worst_excess = -1;
  for (int64_t i = 0; i < a.numel(); ++i) {
    bool good = false;
    double excess = INFINITY;
    if (std::isnan(want[i]) || std::isnan(got[i])) {
      good = std::isnan(want[i]) && std::isnan(got[i]);
    } else if (std::isinf(want[i]) || std::isinf(got[i])) {
      good = want[i] == got[i];
    } else {
      excess = std::abs(got[i] - want[i]) -
               (tolerance.relative * std::abs(want[i]) + tolerance.absolute);
      good = excess <= 0;
    }
    if (good) continue;
    ++count;
    if (first < 0) first = i;
    if (excess > worst_excess) {
      worst_excess = excess;
      worst = i;
    }
  }
  if (count == 0) return "";
  out.precision(9);
  out << count << " of " << a.numel() << " entries differ; first [" << first << "]: " << got[first]
      << " instead of " << want[first] << "; worst [" << worst << "]: " << got[worst]
      << " instead of " << want[worst] << "; tolerance " << tolerance.relative << " relative + "
      << tolerance.absolute;
  return out.str();
}

// A tensor with the values of `tensor` whose storage is neither contiguous nor ordered like it.
inline at::Tensor Strided(const at::Tensor& tensor) {
  if (tensor.dim() == 0) return tensor;
  std::vector<int64_t> sizes = tensor.sizes().vec();
  sizes.back() = 2 * sizes.back() + 3;
  at::Tensor wide = at::full(sizes, 7, tensor.options());
  at::Tensor view = wide.slice(-1, 1, 1 + 2 * tensor.size(-1), 2);
  view.copy_(tensor);
  return view;
}

}  // namespace lemo::testing
