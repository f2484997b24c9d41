#include <cmath>

#include "kernels/block_pool/block_pool_internal.h"
#include "kernels/ref.h"

namespace lemo::kernels::reference {
namespace {

struct Pool {
  std::vector<int64_t> starts;
  std::vector<double> scales;  // of rows
  std::vector<double> v;       // after ReLU, [N, r]
};

Pool Rectified(const at::Tensor& u, const at::Tensor& starts,
               const std::optional<at::Tensor>& row_scale) {
  Pool pool;
  pool.starts = Indices(starts);
  CheckStarts("block_mean_max", pool.starts.data(), static_cast<int64_t>(pool.starts.size()) - 1,
              u.size(0));
  pool.scales = row_scale ? Values(*row_scale) : std::vector<double>(u.size(0), 1.0);
  pool.v = Values(u);
  for (int64_t i = 0; i < u.numel(); ++i) {
    const double scaled = pool.scales[i / u.size(1)] * pool.v[i];
    pool.v[i] = scaled <= 0 ? 0 : scaled;
  }
  return pool;
}

// The first row of [begin, end) with the greatest value in column j; NaN is greater than all.
int64_t FirstGreatest(const Pool& pool, int64_t width, int64_t j, int64_t begin, int64_t end) {
  int64_t best = begin;
  for (int64_t i = begin; i < end && !std::isnan(pool.v[best * width + j]); ++i) {
    if (!(pool.v[i * width + j] <= pool.v[best * width + j])) best = i;
  }
  return best;
}

}  // namespace

at::Tensor BlockMeanMax(const at::Tensor& u, const at::Tensor& starts,
                        const std::optional<at::Tensor>& row_scale) {
  CheckBlockMeanMax(u, starts, row_scale);
  const Pool pool = Rectified(u, starts, row_scale);
  const int64_t width = u.size(1);
  const int64_t blocks = starts.size(0) - 1;
  std::vector<double> z;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t begin = pool.starts[b];
    const int64_t end = pool.starts[b + 1];
    for (int64_t j = 0; j < width; ++j) {
      double sum = 0;
      for (int64_t i = begin; i < end; ++i) sum += pool.v[i * width + j];
      z.push_back(sum / static_cast<double>(end - begin));
    }
    for (int64_t j = 0; j < width; ++j) {
      z.push_back(pool.v[FirstGreatest(pool, width, j, begin, end) * width + j]);
    }
  }
  return FromValues(z, {blocks, 2 * width}, WideType(u.scalar_type()));
}

at::Tensor BlockMeanMaxBackward(const at::Tensor& dz, const at::Tensor& u, const at::Tensor& starts,
                                const std::optional<at::Tensor>& row_scale) {
  CheckBlockMeanMaxBackward(dz, u, starts, row_scale);
  const Pool pool = Rectified(u, starts, row_scale);
  const auto grads = Values(dz);
  const int64_t width = u.size(1);
  std::vector<double> du(u.numel());
  for (int64_t b = 0; b < starts.size(0) - 1; ++b) {
    const int64_t begin = pool.starts[b];
    const int64_t end = pool.starts[b + 1];
    for (int64_t j = 0; j < width; ++j) {
      const double mean = grads[b * 2 * width + j] / static_cast<double>(end - begin);
      const int64_t best = FirstGreatest(pool, width, j, begin, end);
      for (int64_t i = begin; i < end; ++i) {
        const double grad = mean + (i == best ? grads[(b * 2 + 1) * width + j] : 0.0);
        if (pool.v[i * width + j] > 0) du[i * width + j] = pool.scales[i] * grad;
      }
    }
  }
  return FromValues(du, u.sizes(), u.scalar_type());
}

}  // namespace lemo::kernels::reference
