#include "worker/train/tokens/scoring/score_pass.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>

#include "kernels/rope/rope.h"
#include "kernels/rows/rows.h"
#include "worker/train/model/attention.h"
#include "worker/train/model/tile_rows.h"

namespace lemo::train {
namespace {

// Tables that turn nothing: x * 1 - y * 0 is x, bit for bit.
RopeTables Unturned(const Decoder& decoder, const at::Tensor& x) {
  const auto type = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const int64_t columns = decoder.config.head_dim / 2;
  return {at::ones({x.size(0), columns}, x.options().dtype(type)),
          at::zeros({x.size(0), columns}, x.options().dtype(type))};
}

void Add(const at::Tensor& rows, const at::Tensor& delta) {
  kernels::ScatterAddRows(rows, std::nullopt, delta);
}

}  // namespace

Qkv QueriesAndKeys(const Decoder& decoder, const DecoderLayer& layer, const at::Tensor& x) {
  const DecoderConfig& config = decoder.config;
  // A value that is known already is not computed.
  Qkv known;
  known.v = at::zeros({1}, x.options()).expand({x.size(0), config.kv_heads, config.head_dim});
  Qkv made = QkvStage(decoder, layer, x, Unturned(decoder, x), {}, known);
  made.v = at::Tensor();
  return made;
}

at::Tensor Rotated(const Decoder& decoder, const at::Tensor& heads, const RopeTables& rope) {
  if (decoder.config.positions != DecoderConfig::Positions::kRope) return heads;
  return kernels::RopeForward(heads, rope.cos, rope.sin, /*inverse=*/false);
}

void ScorePass(const Decoder& decoder, const RowSet& rows, const ScorePassOptions& options,
               const at::Tensor& stream, ScoreVisitor& visitor) {
  const at::NoGradGuard no_grad;
  const int64_t tile_rows = ChooseTileRows(options.mlp_tile_rows, decoder.device);
  at::Tensor normed = stream;  // post-norm models: written by the norms
  for (int64_t i = options.first_layer; i < options.end_layer; ++i) {
    const DecoderLayer& layer = decoder.layers[i];
    {
      if (i + 1 == options.end_layer && !options.finish_last_layer) {
        const Qkv qk = QueriesAndKeys(decoder, layer, stream);
        visitor.Attention(i, stream, qk.q, qk.k);
        return;
      }
      Qkv qkv = QkvStage(decoder, layer, stream, Unturned(decoder, stream), {}, {});
      visitor.Attention(i, stream, qkv.q, qkv.k);
      qkv.q = Rotated(decoder, qkv.q, rows.rope);
      qkv.k = Rotated(decoder, qkv.k, rows.rope);
      const AttentionResult result = AttentionForward(qkv.q, qkv.k, qkv.v, rows.segments);
      qkv = {};
      Add(stream, OutputStage(layer, result.o, {}, Output::Compute()));
    }
    if (decoder.config.post_norm) normed.copy_(AttentionNorm(decoder, layer, stream));
    visitor.Mlp(i, stream);
    for (int64_t first = 0; first < rows.count; first += tile_rows) {
      const at::Tensor x2 = stream.narrow(0, first, std::min(tile_rows, rows.count - first));
      const at::Tensor delta = MlpStage(decoder, layer, x2, {}, {}, Output::Compute(), nullptr);
      visitor.MlpTile(i, first, x2, delta);
      Add(x2, delta);
    }
    if (decoder.config.post_norm) normed.copy_(MlpNorm(decoder, layer, stream));
  }
}

void ScorePassOf(const Decoder& decoder, const at::Tensor& tokens, const RowSpace& space,
                 const ScorePassOptions& options, ScoreVisitor& visitor) {
  const at::NoGradGuard no_grad;
  const at::Tensor stream =
      at::empty({space.rows(), decoder.config.hidden}, decoder.embedding.options());
  Embed(decoder, tokens, space.positions(), decoder.Rows(stream.size(0)), stream);
  ScorePass(decoder, *space.all(), options, stream, visitor);
}

}  // namespace lemo::train
