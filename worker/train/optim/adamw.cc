#include "worker/train/optim/adamw.h"

#include <ATen/ATen.h>

#include <cmath>
#include <utility>

#include "worker/train/memory/counting_allocator.h"

namespace lemo::train {

std::vector<OptimizerPiece> PiecesOf(const Trainables& trainables) {
  std::vector<OptimizerPiece> pieces;
  for (const Trainable& trainable : trainables) {
    pieces.push_back({trainable.master, trainable.grad, trainable.decay});
  }
  return pieces;
}

AdamW::AdamW(std::vector<OptimizerPiece> pieces, const AdamWOptions& options)
    : pieces_(std::move(pieces)), options_(options) {
  const ScopedMemoryCategory category(MemoryCategory::kTrainable);
  for (const OptimizerPiece& piece : pieces_) {
    first_.push_back(at::zeros_like(piece.master));
    second_.push_back(at::zeros_like(piece.master));
  }
}

void AdamW::Step(double learning_rate, double grad_scale) {
  const at::NoGradGuard no_grad;
  ++steps_;
  const double correction1 = 1.0 - std::pow(options_.beta1, static_cast<double>(steps_));
  const double correction2 = 1.0 - std::pow(options_.beta2, static_cast<double>(steps_));
  for (size_t i = 0; i < pieces_.size(); ++i) {
    OptimizerPiece& piece = pieces_[i];
    if (grad_scale != 1.0) piece.grad.mul_(grad_scale);
    if (piece.decay && options_.weight_decay != 0.0) {
      piece.master.mul_(1.0 - learning_rate * options_.weight_decay);
    }
    first_[i].lerp_(piece.grad, 1.0 - options_.beta1);
    second_[i].mul_(options_.beta2).addcmul_(piece.grad, piece.grad, 1.0 - options_.beta2);
    const at::Tensor denominator =
        second_[i].sqrt().div_(std::sqrt(correction2)).add_(options_.epsilon);
    piece.master.addcdiv_(first_[i], denominator, -learning_rate / correction1);
  }
}

void AdamW::Replace(size_t i, OptimizerPiece piece, at::Tensor first, at::Tensor second) {
  TORCH_CHECK(first.sizes() == piece.master.sizes() && second.sizes() == piece.master.sizes(),
              "moments have another shape than what they are of");
  pieces_[i] = std::move(piece);
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
