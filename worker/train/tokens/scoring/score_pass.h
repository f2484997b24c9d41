// A dense forward pass for looking: a visitor sees what every layer reads and adds, and nothing is
// kept for backward.
//
// Scores of several layers need the streams between them, which only a pass of all rows gives. The
// tape makes such a pass too, but in its own buffers, which a choice in the midst of a step must
// not touch.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "worker/train/model/decoder.h"
#include "worker/train/tokens/row_space.h"

namespace lemo::train {

// Called in the order of the layers, for each Attention, Mlp, MlpTile... The tensors are views of
// what the pass works on: valid for the call, not to be changed. Grad mode is off; a visitor that
// trains something turns it on for itself.
class ScoreVisitor {
 public:
  virtual ~ScoreVisitor() = default;

  // `x` [rows, H] is what attention reads; `q` [rows, A, D] and `k` [rows, G, D] are what the layer
  // really uses (norm, biases, QK norm, adapters), but not rotated.
  virtual void Attention(int64_t /*layer*/, const at::Tensor& /*x*/, const at::Tensor& /*q*/,
                         const at::Tensor& /*k*/) {}
  // `x2` [rows, H] is what the MLP reads.
  virtual void Mlp(int64_t /*layer*/, const at::Tensor& /*x2*/) {}
  // Rows first_row .. first_row + count of x2, and what the MLP adds to them, both [count, H].
  virtual void MlpTile(int64_t /*layer*/, int64_t /*first_row*/, const at::Tensor& /*x2*/,
                       const at::Tensor& /*delta*/) {}
};

struct ScorePassOptions {
  int64_t first_layer = 0;
  int64_t end_layer = 0;  // the layer after the last one
  // Rows of the MLP at a time; 0 for as many as the tape takes. Never more than that many rows of
  // width I exist.
  int64_t mlp_tile_rows = 0;
  // Otherwise the pass ends when the last layer's Attention was called, since its output is nothing
  // that the caller wants; the stream is then that layer's input.
  bool finish_last_layer = true;
};

// Runs the layers on `stream` [rows.count, H], which becomes the last one's output in place;
// adapters take part, dropout does not. `rows` says where the stream's rows lie (its indices are
// not read). Beside the stream it needs q, k, v and o of one layer and one tile of the MLP.
// Bit-equal to what the tape makes of all rows.
void ScorePass(const Decoder& decoder, const RowSet& rows, const ScorePassOptions& options,
               const at::Tensor& stream, ScoreVisitor& visitor);

// The same from the embedding on, for `tokens` int64, one a row of `space`.
void ScorePassOf(const Decoder& decoder, const at::Tensor& tokens, const RowSpace& space,
                 const ScorePassOptions& options, ScoreVisitor& visitor);

// The layer's queries [rows, A, D] and keys [rows, G, D] for the stream `x`, not rotated; v stays
// undefined.
Qkv QueriesAndKeys(const Decoder& decoder, const DecoderLayer& layer, const at::Tensor& x);

// q or k [rows, heads, D] as attention compares them.
at::Tensor Rotated(const Decoder& decoder, const at::Tensor& heads, const RopeTables& rope);

}  // namespace lemo::train
