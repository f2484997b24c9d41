// Objectives: from the last residual stream to a loss and its gradient.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "worker/train/model/decoder.h"
#include "worker/train/tuner/tuner.h"

namespace lemo::train {

struct LossSums {
  double loss = 0;       // sum over labelled rows, nats
  int64_t labelled = 0;  // rows
  int64_t correct = 0;   // rows whose arg max is the label

  void Add(const LossSums& other) {
    loss += other.loss;
    labelled += other.labelled;
    correct += other.correct;
  }
  double Mean() const { return loss / static_cast<double>(labelled); }
};

// The labelled rows, in the order of the stream; of shared rows in that of the ranks, on each of
// them.
struct RowLosses {
  at::Tensor loss;  // fp32 (fp64) [labelled], nats
  at::Tensor hit;   // int64 [labelled], 1 where the label has the highest logit
};

// Next-token cross-entropy in segments over labelled rows (lemo-spec section 10). The logits of a
// segment become their gradient in place, so the head's product runs once and no [rows, vocabulary]
// tensor exists.
//
// In a tensor group every rank has its words' logits, and all get the same losses and the same G,
// of shared rows each its part; gradients of the final norm are parts of a sum. All ranks call all
// functions alike.
class CrossEntropyObjective {
 public:
  // `segment_rows` 0: as many rows as 512 MiB hold at 6 bytes a logit, 2048 at most.
  CrossEntropyObjective(const Decoder& decoder, Trainables& trainables, int64_t segment_rows);

  // Replaces the stream R by G = d(scale * sum of losses)/dR in place, adds to the gradients of the
  // final norm, the projection to the head and the head if they train. `labels` int64 [rows] on the
  // device, -100 for none.
  LossSums LossAndGradient(const at::Tensor& stream, const at::Tensor& labels, double scale);

  // The loss alone; the stream stays. `rows` (may be null) receives it row by row.
  LossSums Loss(const at::Tensor& stream, const at::Tensor& labels, RowLosses* rows = nullptr);

  // Logits of all rows, float: for comparing two models on a few rows.
  at::Tensor Logits(const at::Tensor& stream);

  int64_t segment_rows() const { return segment_rows_; }

 private:
  const Decoder& decoder_;
  std::vector<Trainable*> final_;  // between the last layer and the head
  Trainable* head_ = nullptr;
  int64_t segment_rows_;
};

}  // namespace lemo::train
