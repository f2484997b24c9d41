#include "worker/train/tokens/predictor/learner.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace lemo::train {
namespace {

constexpr double kClipNorm = 1.0;

// Ascending indices of the neurons that stay.
at::Tensor Alive(const at::Tensor& dead, int64_t cases, double share) {
  const at::Tensor alive = (dead / static_cast<double>(cases)).lt(share).nonzero().squeeze(1);
  const int64_t least = std::min(kLeastNeurons, dead.size(0));
  if (alive.size(0) >= least) return alive;
  const at::Tensor order = dead.argsort(/*stable=*/true, /*dim=*/0, /*descending=*/false);
  return std::get<0>(order.narrow(0, 0, least).sort());
}

}  // namespace

double DeadShare(int64_t round) {
  return std::max(0.55, 0.80 - 0.05 * static_cast<double>(round - 1));
}

void DeadCounts::Add(const PathActivations& activations) {
  const auto share = [](const at::Tensor& before_relu) {
    return before_relu.le(0).to(at::kDouble).mean(0);
  };
  const at::Tensor of_first = share(activations.first), of_second = share(activations.second);
  first = first.defined() ? first + of_first : of_first;
  second = second.defined() ? second + of_second : of_second;
  ++added;
}

Learner::Learner(const std::string& name, std::vector<at::Tensor*> matrices, at::Device device,
                 const AdamWOptions& options)
    : matrices_(std::move(matrices)) {
  for (size_t i = 0; i < matrices_.size(); ++i) {
    Trainable trainable;
    trainable.name = absl::StrCat(name, ".", i);
    trainable.master = matrices_[i]->detach().to(device, at::kFloat).clone();
    trainable.value = trainable.master;
    trainable.grad = at::zeros_like(trainable.master);
    trainables_.push_back(std::move(trainable));
    *matrices_[i] = trainables_[i].master.detach().requires_grad_(true);
  }
  optimizer_ = std::make_unique<AdamW>(PiecesOf(trainables_), options);
}

void Learner::Backward(const at::Tensor& loss, double weight) {
  std::vector<at::Tensor> leaves;
  for (const at::Tensor* matrix : matrices_) leaves.push_back(*matrix);
  const std::vector<at::Tensor> grads = torch::autograd::grad({loss}, leaves);
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < grads.size(); ++i) trainables_[i].grad.add_(grads[i], weight);
}

double Learner::Step(double learning_rate) {
  const double norm = GlobalGradientNorm(trainables_);
  if (std::isfinite(norm)) {
    optimizer_->Step(learning_rate, std::min(1.0, kClipNorm / (norm + 1e-6)));
  }
  ZeroGradients(trainables_);
  return norm;
}

void Learner::Keep(size_t matrix, int64_t dimension, const at::Tensor& indices) {
  const at::NoGradGuard no_grad;
  Trainable& trainable = trainables_[matrix];
  const auto part = [&](const at::Tensor& whole) {
    return whole.index_select(dimension, indices).contiguous();
  };
  trainable.master = part(trainable.master);
  trainable.value = trainable.master;
  trainable.grad = at::zeros_like(trainable.master);
  optimizer_->Replace(matrix, {trainable.master, trainable.grad, trainable.decay},
                      part(optimizer_->first_moments()[matrix]),
                      part(optimizer_->second_moments()[matrix]));
  *matrices_[matrix] = trainable.master.detach().requires_grad_(true);
}

int64_t Learner::Prune(size_t first_matrix, bool pooled, const DeadCounts& dead, double share) {
  if (dead.added == 0) return 0;
  const at::Tensor first = Alive(dead.first, dead.added, share);
  const at::Tensor second = Alive(dead.second, dead.added, share);
  const int64_t width = dead.first.size(0);
  const int64_t gone = width - first.size(0) + dead.second.size(0) - second.size(0);
  if (gone == 0) return 0;
  Keep(first_matrix, 0, first);
  // A pooled neuron comes in twice: its mean, and its maximum.
  Keep(first_matrix + 1, 1, pooled ? at::cat({first, first + width}) : first);
  Keep(first_matrix + 1, 0, second);
  Keep(first_matrix + 2, 1, second);
  return gone;
}

}  // namespace lemo::train
