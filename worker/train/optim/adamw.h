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

// Not thread-safe. The trainables outlive it and keep their order.
class AdamW {
 public:
  AdamW(Trainables& trainables, const AdamWOptions& options);

  // One update from `grad` of every trainable, multiplied by `grad_scale` (clipping), then
  // refreshes the values.
  void Step(double learning_rate, double grad_scale);

  int64_t steps() const { return steps_; }

  // State for a checkpoint, in the order of the trainables; fp32 (fp64 in fp64 runs).
  const std::vector<at::Tensor>& first_moments() const { return first_; }
  const std::vector<at::Tensor>& second_moments() const { return second_; }
  // After a trainable lost rows or columns: its moments lose the same ones, and training goes on.
  void ReplaceMoments(size_t i, at::Tensor first, at::Tensor second);
  // After the moments and masters were overwritten from a checkpoint.
  void Restore(int64_t steps) { steps_ = steps; }

 private:
  Trainables& trainables_;
  AdamWOptions options_;
  std::vector<at::Tensor> first_, second_;
  int64_t steps_ = 0;
};

// sqrt(sum of squares over all gradients), added up in double in the order of the trainables.
double GlobalGradientNorm(const Trainables& trainables);

// The first trainable whose gradient has a NaN or Inf, or "".
std::string FirstBadGradient(const Trainables& trainables);

}  // namespace lemo::train
