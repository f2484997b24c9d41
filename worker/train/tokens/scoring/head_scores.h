// Scores of blocks from what the head says of their rows (lemo-spec section 19): how badly it
// predicts the next token, and how unsure it is.
#pragma once

#include <ATen/core/Tensor.h>

#include "worker/train/model/decoder.h"
#include "worker/train/tokens/blocks.h"

namespace lemo::train {

// Nats, [blocks], fp32 (fp64) on the CPU: the mean loss of the block's labelled rows; -1 for a
// block without any. `stream` [rows, H] after the last layer, `labels` int64 [rows], -100 for none.
// In segments of `segment_rows` rows (0: as the objective); no [rows, vocabulary] tensor exists.
at::Tensor LossScores(const Decoder& decoder, const at::Tensor& stream, const at::Tensor& labels,
                      const BlockLayout& blocks, int64_t segment_rows);

// Nats, [blocks], likewise: the mean entropy of the predicted distributions of the block's rows.
at::Tensor EntropyScores(const Decoder& decoder, const at::Tensor& stream,
                         const BlockLayout& blocks, int64_t segment_rows);

}  // namespace lemo::train
