// True informativeness of MLP blocks (lemo-spec section 8): how much the MLP changes a row, which
// is the error of skipping it.
#pragma once

#include <ATen/core/Tensor.h>

#include "worker/train/model/decoder.h"
#include "worker/train/tokens/blocks.h"

namespace lemo::train {

// e_t = |delta_t| / |x2_t|, fp32 (fp64 for fp64) [rows], of x2 and delta [rows, H]. A row of zeros
// gives Inf, or NaN when nothing is added to it.
at::Tensor RelativeUpdates(const at::Tensor& x2, const at::Tensor& delta);

// The largest value among the rows of every block, [blocks], in the type and on the device of
// `values` [rows]. NaN where any is.
at::Tensor BlockMaxima(const at::Tensor& values, const BlockLayout& blocks);

// J of every block [blocks] for the stream `x2` that the layer's MLP reads, one row of `blocks`
// each. In tiles of `tile_rows` rows (0: as the tape).
at::Tensor MlpScores(const Decoder& decoder, int64_t layer, const at::Tensor& x2,
                     const BlockLayout& blocks, int64_t tile_rows = 0);

}  // namespace lemo::train
