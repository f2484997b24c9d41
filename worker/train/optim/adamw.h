// AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) on the masters of the trainable tensors, in
// the order of operations of torch.optim.AdamW, so that the curves agree to rounding.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "worker/train/tuner/tuner.h"

namespace lemo::train {

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.0;  // of tensors with `decay`
};

// What one update reads and writes: a trainable's master and gradient, or the part of them that
// this rank has. Of one shape.
struct OptimizerPiece {
  at::Tensor master, grad;
  bool decay = true;  // as Trainable's
};

// One piece a trainable.
std::vector<OptimizerPiece> PiecesOf(const Trainables& trainables);

// Not thread-safe.
class AdamW {
 public:
  AdamW(std::vector<OptimizerPiece> pieces, const AdamWOptions& options);

  // One update from the gradient of every piece, multiplied by `grad_scale` (clipping). Values that
  // are not their masters are then to be refreshed.
  void Step(double learning_rate, double grad_scale);

  int64_t steps() const { return steps_; }

  // State for a checkpoint, in the order of the pieces; fp32 (fp64 in fp64 runs).
  const std::vector<at::Tensor>& first_moments() const { return first_; }
  const std::vector<at::Tensor>& second_moments() const { return second_; }
  // After a trainable lost rows or columns: its moments lose the same ones, and training goes on.
  void Replace(size_t i, OptimizerPiece piece, at::Tensor first, at::Tensor second);
  // After the moments and masters were overwritten from a checkpoint.
  void Restore(int64_t steps) { steps_ = steps; }

 private:
  std::vector<OptimizerPiece> pieces_;
  AdamWOptions options_;
  std::vector<at::Tensor> first_, second_;
  int64_t steps_ = 0;
};

// sqrt(sum of squares over all gradients), added up in double in the order of the trainables.
double GlobalGradientNorm(const Trainables& trainables);

// The first trainable whose gradient has a NaN or Inf, or "".
std::string FirstBadGradient(const Trainables& trainables);

}  // namespace lemo::train
