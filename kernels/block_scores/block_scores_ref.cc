#include <cmath>

#include "kernels/block_scores/block_scores_internal.h"
#include "kernels/ref.h"

namespace lemo::kernels::reference {

at::Tensor BlockScores(const at::Tensor& q, const at::Tensor& k, int64_t block_rows, double scale) {
  CheckBlockScores(q, k, block_rows, scale);
  const int64_t rows = q.size(0);
  const int64_t heads = q.size(1);
  const int64_t kv_heads = k.size(1);
  const int64_t width = q.size(2);
  const int64_t blocks = BlockCount(rows, block_rows);
  const auto queries = Values(q);
  const auto keys = Values(k);
  std::vector<double> maxima(blocks * blocks);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (int64_t h = 0; h < heads; ++h) {
        const double* query = &queries[(i * heads + h) * width];
        const double* key = &keys[(j * kv_heads + h / (heads / kv_heads)) * width];
        double product = 0;
        for (int64_t d = 0; d < width; ++d) product += query[d] * key[d];
        const double score = scale * product;
        if (!(score <= 0)) sum += score;
      }
      double& best = maxima[(i / block_rows) * blocks + j / block_rows];
      const double score = sum / static_cast<double>(heads);
      if (!std::isnan(best) && !(score <= best)) best = score;
    }
  }
  return FromValues(maxima, {blocks, blocks}, WideType(q.scalar_type()));
}

}  // namespace lemo::kernels::reference
