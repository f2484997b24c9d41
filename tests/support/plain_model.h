// A decoder written down with plain ATen operations and autograd: no tape, no kernels of ours,
// attention as a masked softmax. What the engine is compared with.
#pragma once

#include <ATen/ATen.h>

#include <map>
#include <string>
#include <vector>

#include "worker/train/data/batch.h"
#include "worker/train/model/family/decoder_config.h"

namespace lemo::train::testing {

// Parameters by Hugging Face name; adapter tensors by PEFT key.
using Parameters = std::map<std::string, at::Tensor>;

struct PlainOptions {
  // y += scale * x A^T B^T where the parameters hold an adapter for the module.
  double lora_scale = 0.0;
  // Which rows each layer's attention and MLP compute (bool [rows]); empty for all. The dense
  // equivalent of lemo-spec section 2: eliminated keys masked, sub-block output of eliminated rows
  // zero.
  std::vector<at::Tensor> attention_rows, mlp_rows;
  // Rows that attention leaves out stay keys and values, without gradient (lemo-spec 18.6).
  bool kv_all = false;
  // Rows that are in the stream of each layer (bool [rows]); empty for all. Only post-norm models
  // ask: their norms take all rows of the stream.
  std::vector<at::Tensor> stream_rows;
  // Rows that carry loss (bool [rows]); undefined for all. A row that left the stream is one that
  // no later sub-block computes; one that left for good, or never went in, carries no loss either.
  at::Tensor loss_rows;
};

// Hidden rows after the last layer, before the final norm.
at::Tensor PlainHidden(const DecoderConfig& config, const Parameters& parameters,
                       const MicroBatch& batch, const PlainOptions& options);

at::Tensor PlainLogits(const DecoderConfig& config, const Parameters& parameters,
                       const MicroBatch& batch, const PlainOptions& options);

// int64 [rows]: labels of the rows that carry loss, else -100.
at::Tensor PlainLabels(const MicroBatch& batch, const PlainOptions& options);

// Sum of the cross-entropies of the labelled rows.
at::Tensor PlainLoss(const DecoderConfig& config, const Parameters& parameters,
                     const MicroBatch& batch, const PlainOptions& options);

}  // namespace lemo::train::testing
