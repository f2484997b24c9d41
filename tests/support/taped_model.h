// A tiny model with its tuner, run through the tape and the objective, and the same by plain
// autograd: what the tests of the tape compare.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/plain_model.h"
#include "tests/support/tiny_model.h"
#include "worker/train/loop/device_batch.h"
#include "worker/train/objective/objective.h"
#include "worker/train/tape/tape.h"

namespace lemo::train::testing {

inline constexpr uint64_t kModelSeed = 20261121;
inline constexpr double kLoraScale = 2.0;  // alpha 6 over rank 3, as LoraSpec has them
inline const std::vector<std::string> kStoragePolicies = {
    "all",         "mlp",         "attn_out",         "input",
    "all+offload", "mlp+offload", "attn_out+offload", "input+offload"};

inline std::vector<StoragePolicy> Uniform(const std::string& name, int64_t layers) {
  return std::vector<StoragePolicy>(layers, *ParseStoragePolicy(name));
}

// Which rows a pass computes.
struct PassRows {
  RowSource* source = nullptr;  // null: all rows
  BlocksKept entering;          // blocks that go in at all; null: all
  bool keep_left_rows = true;
  bool kv_all = false;
  at::Tensor loss_rows;  // bool [rows of the micro-batch]: rows that carry loss; undefined: all
};

struct TapedModel {
  TapedModel(const std::string& shape, at::ScalarType type, const lemo::v1::TunerSpec& spec)
      : TapedModel(TinyConfig(shape), type, spec) {}
  // `tensor`: the ranks that share the model; null: this one alone. `sequence`: they share the rows
  // of the stream, too.
  TapedModel(const DecoderConfig& model, at::ScalarType type, const lemo::v1::TunerSpec& spec,
             Communicator* tensor = nullptr, bool sequence = false)
      : config(model),
        split(tensor != nullptr ? std::optional(SplitOver(config, *tensor, sequence))
                                : std::nullopt),
        weights(RandomWeights(config, kModelSeed, type, at::kCPU, split ? &*split : nullptr)),
        decoder(split ? Decoder(*split, weights, *tensor) : Decoder(config, weights)),
        tuner(*MakeTuner(spec)),
        trainables(*tuner->Attach(decoder, kModelSeed)) {
    MoveOffZero(trainables, kModelSeed + 1);
  }

  // Loss sum and, in the trainables, gradients of the mean loss. The last stream and its gradient
  // are left in `hidden` and `gradient`, the rows that they are in `order`; those of all ranks, one
  // after another, where they share them.
  LossSums Run(const MicroBatch& batch, const std::vector<StoragePolicy>& policies,
               const PassRows& rows = {}) {
    ZeroGradients(trainables);
    return Pass(batch, policies, rows, /*for_backward=*/true);
  }

  // The loss sum alone.
  double Loss(const MicroBatch& batch, const PassRows& rows = {}) {
    return Pass(batch, Uniform("input", config.layers), rows, /*for_backward=*/false).loss;
  }

  std::vector<at::Tensor> Gradients() const {
    std::vector<at::Tensor> grads;
    for (const Trainable& trainable : trainables) grads.push_back(trainable.grad.clone());
    return grads;
  }

  DecoderConfig config;  // of the whole model
  std::optional<ModelSplit> split;
  ModelWeights weights;
  Decoder decoder;
  std::unique_ptr<Tuner> tuner;
  Trainables trainables;
  int64_t mlp_tile_rows = 7;  // divides no batch of these tests
  int64_t loss_segment_rows = 5;
  int64_t block_rows = 64;
  at::Tensor hidden;    // [rows, H]
  at::Tensor gradient;  // [rows, H], of the stream of the first layer
  at::Tensor order;     // int64 [rows]: numbers of the rows in the micro-batch
  int64_t saved_bytes = 0;

 private:
  static ModelSplit SplitOver(const DecoderConfig& config, const Communicator& tensor,
                              bool sequence) {
    ModelSplit split = *ModelSplit::Make(config, tensor.rank(), tensor.size());
    split.shares_rows = sequence;
    return split;
  }

  LossSums Pass(const MicroBatch& batch, const std::vector<StoragePolicy>& policies,
                const PassRows& choice, bool for_backward) {
    const DeviceBatch device = ToDevice(batch, decoder, block_rows);
    RowBounds bounds = RowBounds::Dense(config.layers, batch.rows());
    for (LayerRowCounts& layer : bounds.layers) {
      layer.separate = choice.source != nullptr;
      layer.seen = choice.kv_all ? batch.rows() : 0;
      layer.stream = batch.rows();
    }
    Tape tape(decoder, trainables, {.policies = policies, .mlp_tile_rows = mlp_tile_rows}, bounds);
    CrossEntropyObjective objective(decoder, trainables, loss_segment_rows);
    std::shared_ptr<const RowSpace> space = device.space;
    at::Tensor tokens = device.tokens, labels = device.labels;
    if (choice.loss_rows.defined()) {
      labels = labels.masked_fill(choice.loss_rows.logical_not(), kIgnoreLabel);
    }
    order = at::arange(batch.rows(), at::kLong);
    if (choice.entering) {
      order = space->Indices(*choice.entering);
      tokens = tokens.index_select(0, order);
      space = space->Shrunk(*choice.entering);
    }
    const at::Tensor stream = tape.Forward(
        tokens, space, choice.source,
        {.keep_left_rows = choice.keep_left_rows, .kv_all = choice.kv_all}, for_backward);
    if (tape.order()) order = order.index_select(0, *tape.order());
    labels = labels.index_select(0, order);
    const RowParts left = decoder.RowsWith(stream.size(0)), entered = decoder.Rows(tokens.size(0));
    order = left.Gather(order);
    hidden = left.Gather(stream).clone();
    if (!for_backward) return objective.Loss(stream, labels);
    const int64_t labelled = decoder.RowsWith(labels.ne(kIgnoreLabel).sum().item<int64_t>()).rows();
    const LossSums sums = objective.LossAndGradient(stream, labels, 1.0 / labelled);
    tape.Backward(stream);
    // Rows that left for good are behind its end.
    gradient =
        entered.Gather(stream.as_strided({entered.count(), config.hidden}, {config.hidden, 1}))
            .narrow(0, 0, hidden.size(0))
            .clone();
    saved_bytes = tape.saved_bytes();
    return sums;
  }
};

// What plain autograd gives.
struct Expected {
  double loss = 0;
  at::Tensor hidden;
  std::vector<at::Tensor> grads;
};

inline Expected Plain(TapedModel& model, const MicroBatch& batch, PlainOptions options) {
  Parameters parameters = PlainParameters(model.decoder, model.trainables);
  options.lora_scale = kLoraScale;
  const at::Tensor loss = PlainLoss(model.config, parameters, batch, options);
  const at::Tensor labels = PlainLabels(batch, options);
  (loss / labels.ne(kIgnoreLabel).sum()).backward();
  Expected expected{
      loss.item<double>(), PlainHidden(model.config, parameters, batch, options).detach(), {}};
  for (const Trainable& trainable : model.trainables) {
    expected.grads.push_back(parameters.at(trainable.name).grad());
  }
  return expected;
}

inline void ExpectNear(const TapedModel& model, const LossSums& sums, const Expected& expected,
                       double bound) {
  EXPECT_LE(std::abs(sums.loss - expected.loss) / expected.loss, bound);
  EXPECT_LE(RelativeError(model.hidden, expected.hidden.index_select(0, model.order)), bound);
  double largest = 0;
  for (const at::Tensor& grad : expected.grads) {
    ASSERT_TRUE(grad.defined());
    largest = std::max(largest, grad.norm().item<double>());
  }
  for (size_t i = 0; i < model.trainables.size(); ++i) {
    SCOPED_TRACE(model.trainables[i].name);
    const double norm = expected.grads[i].norm().item<double>();
    const double error = (model.trainables[i].grad - expected.grads[i]).norm().item<double>();
    // A bias of keys that are not rotated has none: it moves all scores of a query alike.
    const bool zero =
        model.config.family == "opt" && model.trainables[i].name.ends_with("k_proj.bias");
    EXPECT_GT(norm, zero ? -1.0 : 1e-9 * largest);
    EXPECT_LE(error, bound * (zero ? largest : norm));
  }
}

}  // namespace lemo::train::testing
