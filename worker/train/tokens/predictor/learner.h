// One network while it trains: its values, optimizer and dead neurons.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "worker/train/optim/adamw.h"
#include "worker/train/tokens/predictor/network.h"
#include "worker/train/tuner/tuner.h"

namespace lemo::train {

// How often each hidden neuron was not active.
struct DeadCounts {
  at::Tensor first, second;  // fp64 [r1], [r2]: sums of shares; undefined before the first Add
  int64_t added = 0;

  void Add(const PathActivations& activations);
};

// Owns the leaves that a network's matrices are. Neither copyable nor movable: the optimizer refers
// to it.
class Learner {
 public:
  // Moves `matrices` to `device`; afterwards they are leaves that require grad and share storage
  // with what is trained. They and `this` stay where they are.
  Learner(const std::string& name, std::vector<at::Tensor*> matrices, at::Device device,
          const AdamWOptions& options);
  Learner(const Learner&) = delete;
  Learner& operator=(const Learner&) = delete;

  // Adds the gradient of `loss` times `weight`.
  void Backward(const at::Tensor& loss, double weight);
  // One update, clipped to norm 1, then the gradients are zero again. Returns the norm before
  // clipping; when it is not finite nothing is updated.
  double Step(double learning_rate);

  // Elastic size (lemo-spec section 5): drops the hidden neurons of the path whose matrices begin
  // at `first_matrix` that were dead in at least `share` of the cases, never below 16 of a layer.
  // Weights and moments lose the same rows and columns, so that training goes on. Returns how many
  // neurons went.
  int64_t Prune(size_t first_matrix, bool pooled, const DeadCounts& dead, double share);

  AdamW& optimizer() { return *optimizer_; }
  const Trainables& trainables() const { return trainables_; }

 private:
  void Keep(size_t matrix, int64_t dimension, const at::Tensor& indices);

  std::vector<at::Tensor*> matrices_;
  Trainables trainables_;
  std::unique_ptr<AdamW> optimizer_;
};

inline constexpr int64_t kLeastNeurons = 16;
// The share of dead cases at which the `round`-th pruning (from 1) drops a neuron.
double DeadShare(int64_t round);

}  // namespace lemo::train
