// A tiny model with a tuner, for the tests of tuners.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>

#include "tests/support/tiny_model.h"
#include "worker/train/loop/device_batch.h"
#include "worker/train/objective/objective.h"
#include "worker/train/optim/adamw.h"
#include "worker/train/tape/tape.h"

namespace lemo::train {

inline constexpr uint64_t kWeightSeed = 20261121;

struct TunedModel {
  TunedModel(const std::string& shape, at::ScalarType type, const lemo::v1::TunerSpec& spec)
      : config(testing::TinyConfig(shape)),
        weights(RandomWeights(config, kWeightSeed, type, at::kCPU)),
        decoder(config, weights),
        tuner(*MakeTuner(spec)) {}

  absl::Status Attach(uint64_t seed) {
    absl::StatusOr<Trainables> made = tuner->Attach(decoder, seed);
    if (made.ok()) trainables = *std::move(made);
    return made.status();
  }

  const Trainable* Find(const std::string& name) const {
    for (const Trainable& trainable : trainables) {
      if (trainable.name == name) return &trainable;
    }
    return nullptr;
  }

  // The base weights' values, apart from them.
  std::map<std::string, at::Tensor> CopyWeights() const {
    std::map<std::string, at::Tensor> copies;
    for (const auto& [name, tensor] : weights.tensors()) copies[name] = tensor.clone();
    return copies;
  }

  // Steps on one batch, as the loop makes them. Returns the loss before the last.
  double Train(int steps, const AdamWOptions& options) {
    const MicroBatch batch = testing::RandomBatch(config, {9, 1, 14}, kWeightSeed);
    const DeviceBatch device = ToDevice(batch, decoder);
    Tape tape(decoder, trainables,
              {.policies = std::vector<StoragePolicy>(config.layers, StoragePolicy{})},
              RowBounds::Dense(config.layers, batch.rows()));
    CrossEntropyObjective objective(decoder, trainables, 0);
    AdamW optimizer(PiecesOf(trainables), options);
    double loss = 0;
    for (int step = 0; step < steps; ++step) {
      ZeroGradients(trainables);
      const at::Tensor stream = tape.Forward(device.tokens, device.space, nullptr, {}, true);
      loss = objective.LossAndGradient(stream, device.labels, 0.05).loss;
      tape.Backward(stream);
      optimizer.Step(1e-2, 1.0);
      RefreshValues(trainables);
    }
    return loss;
  }

  DecoderConfig config;
  ModelWeights weights;
  Decoder decoder;
  std::unique_ptr<Tuner> tuner;
  Trainables trainables;
};

}  // namespace lemo::train
