#include "worker/train/tokens/scoring/mlp_scores.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "worker/train/model/tile_rows.h"

namespace lemo::train {
namespace {

at::Tensor RowNorms(const at::Tensor& x) {
  const auto type = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return at::linalg_vector_norm(x, 2, {1}, /*keepdim=*/false, type);
}

}  // namespace

at::Tensor RelativeUpdates(const at::Tensor& x2, const at::Tensor& delta) {
  const at::NoGradGuard no_grad;
  return RowNorms(delta) / RowNorms(x2);
}

at::Tensor BlockMaxima(const at::Tensor& values, const BlockLayout& blocks) {
  const at::Tensor host = values.to(at::kCPU, at::kDouble).contiguous();
  const double* data = host.const_data_ptr<double>();
  at::Tensor maxima = at::empty({blocks.blocks()}, at::kDouble);
  double* out = maxima.mutable_data_ptr<double>();
  for (int64_t n = 0; n < blocks.blocks(); ++n) {
    out[n] = data[blocks.starts[n]];
    for (int64_t row = blocks.starts[n] + 1; row < blocks.starts[n + 1]; ++row) {
      if (data[row] > out[n] || std::isnan(data[row])) out[n] = data[row];
    }
  }
  return maxima.to(values.options());
}

at::Tensor MlpScores(const Decoder& decoder, int64_t layer, const at::Tensor& x2,
                     const BlockLayout& blocks, int64_t tile_rows) {
  const at::NoGradGuard no_grad;
  tile_rows = ChooseTileRows(tile_rows, decoder.device);
  std::vector<at::Tensor> updates;
  for (int64_t first = 0; first < x2.size(0); first += tile_rows) {
    const at::Tensor tile = x2.narrow(0, first, std::min(tile_rows, x2.size(0) - first));
    updates.push_back(RelativeUpdates(
        tile, MlpStage(decoder, decoder.layers[layer], tile, {}, {}, Output::Compute(), nullptr)));
  }
  return BlockMaxima(at::cat(updates), blocks);
}

}  // namespace lemo::train
