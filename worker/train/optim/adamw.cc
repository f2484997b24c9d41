#include "worker/train/optim/adamw.h"

#include <ATen/ATen.h>

#include <cmath>
#include <utility>

#include "worker/train/memory/counting_allocator.h"

namespace lemo::train {

AdamW::AdamW(Trainables& trainables, const AdamWOptions& options)
    : trainables_(trainables), options_(options) {
  const ScopedMemoryCategory category(MemoryCategory::kTrainable);
  for (const Trainable& trainable : trainables_) {
    first_.push_back(at::zeros_like(trainable.master));
    second_.push_back(at::zeros_like(trainable.master));
  }
}

void AdamW::Step(double learning_rate, double grad_scale) {
  const at::NoGradGuard no_grad;
  ++steps_;
  const double correction1 = 1.0 - std::pow(options_.beta1, static_cast<double>(steps_));
  const double correction2 = 1.0 - std::pow(options_.beta2, static_cast<double>(steps_));
  for (size_t i = 0; i < trainables_.size(); ++i) {
    Trainable& trainable = trainables_[i];
    if (grad_scale != 1.0) trainable.grad.mul_(grad_scale);
    if (trainable.decay && options_.weight_decay != 0.0) {
      trainable.master.mul_(1.0 - learning_rate * options_.weight_decay);
    }
    first_[i].lerp_(trainable.grad, 1.0 - options_.beta1);
    second_[i].mul_(options_.beta2).addcmul_(trainable.grad, trainable.grad, 1.0 - options_.beta2);
    const at::Tensor denominator =
        second_[i].sqrt().div_(std::sqrt(correction2)).add_(options_.epsilon);
    trainable.master.addcdiv_(first_[i], denominator, -learning_rate / correction1);
  }
  RefreshValues(trainables_);
}

void AdamW::ReplaceMoments(size_t i, at::Tensor first, at::Tensor second) {
  TORCH_CHECK(first.sizes() == trainables_[i].master.sizes() &&
                  second.sizes() == trainables_[i].master.sizes(),
              "moments of ", trainables_[i].name, " have another shape than its values");
  first_[i] = std::move(first);
  second_[i] = std::move(second);
}

double GlobalGradientNorm(const Trainables& trainables) {
  double squares = 0.0;
  for (const Trainable& trainable : trainables) {
    const double norm =
        at::linalg_vector_norm(trainable.grad, 2, std::nullopt, false, at::kDouble).item<double>();
    squares += norm * norm;
  }
  return std::sqrt(squares);
}

std::string FirstBadGradient(const Trainables& trainables) {
  for (const Trainable& trainable : trainables) {
    if (!trainable.grad.isfinite().all().item<bool>()) return trainable.name;
  }
  return "";
}

}  // namespace lemo::train
