// Small random models and batches for tests, each from a printed seed.
#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "tests/support/plain_model.h"
#include "worker/train/data/batch.h"
#include "worker/train/model/decoder.h"
#include "worker/train/model/weights.h"
#include "worker/train/tuner/tuner.h"

namespace lemo::train::testing {

// The shapes that the families differ in, by name: "mha", "gqa", "qwen2" (QKV bias), "qwen3" (QK
// norm, heads wider than hidden / heads, untied), "opt" (learned positions, LayerNorm, biases, a
// ReLU MLP), "opt_post_norm" (the same as its 350M model has it: norms behind the additions, none
// before the head, a narrow embedding).
DecoderConfig TinyConfig(const std::string& name);

// Documents of these lengths, one after another; random tokens, a tenth of the labels ignored.
MicroBatch RandomBatch(const DecoderConfig& config, const std::vector<int>& lengths, uint64_t seed);

// The same with gaps in the positions of every document, all of them below `target`.
MicroBatch SkipPositions(MicroBatch batch, int64_t target, uint64_t seed);

// `parts` as one packed micro-batch.
MicroBatch Pack(const std::vector<MicroBatch>& parts);

// All parameters of the decoder and the trainables' values as leaves that require grad where they
// train.
Parameters PlainParameters(Decoder& decoder, const Trainables& trainables);

// |a - b| / |b| as vectors; NaN where either is not finite, so that a comparison with a bound
// fails.
double RelativeError(const at::Tensor& a, const at::Tensor& b);

// A spec for LoRA on every linear module with B moved off zero, so that all gradients are non-zero.
lemo::v1::TunerSpec LoraSpec(int rank = 3, double alpha = 6.0);
lemo::v1::TunerSpec FullSpec();
void MoveOffZero(Trainables& trainables, uint64_t seed);

}  // namespace lemo::train::testing
