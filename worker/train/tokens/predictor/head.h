// A head of a predictor while it learns, and the pass that it learns from.
//
// Training before a run (training.h) and learning during one (policy/online.h) teach and measure
// heads with this, so that what they do to one on the same input is the same.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "worker/train/model/decoder.h"
#include "worker/train/optim/adamw.h"
#include "worker/train/tokens/predictor/learner.h"
#include "worker/train/tokens/predictor/network.h"
#include "worker/train/tokens/predictor/quality.h"
#include "worker/train/tokens/row_space.h"
#include "worker/train/tokens/scoring/attention_scores.h"
#include "worker/train/tokens/scoring/score_pass.h"

namespace lemo::train {

// What all heads of a predictor have in common.
struct HeadOptions {
  PredictorShape shape;
  AttentionScoreOptions scores;
  bool elastic = false;  // count dead neurons
};

// Steps over which the scale of a head that begins anew is averaged before it is fixed.
inline constexpr int64_t kScaleSteps = 20;

// The scores of some layers, guessed from the input of the first: their mean.
struct AttentionHead {
  // `settled`: `start` has learnt before, so that its scale stays.
  AttentionHead(std::string head, int64_t first, int64_t end, AttentionPredictor start,
                bool settled, at::Device device, const AdamWOptions& adamw);

  // Adds gradient and loss of a part of a step, `weight` of it: from the rows `x` [rows, H] that
  // the first layer reads, and M of every document, the mean of the layers. `learner` ends the
  // step.
  void Learn(const Decoder& decoder, const HeadOptions& options, const at::Tensor& x,
             const BlockLayout& blocks, const std::vector<at::Tensor>& actual, double weight);
  // Measures with a copy such as policies run.
  void BeginMeasuring(const Decoder& decoder, const HeadOptions& options);
  void Measure(const Decoder& decoder, const HeadOptions& options, const at::Tensor& x,
               const BlockLayout& blocks, const std::vector<at::Tensor>& actual);

  // fp32 on the CPU.
  AttentionPredictor Copy() const;

  std::string name;
  int64_t first_layer, end_layer;
  AttentionPredictor predictor;
  Learner learner;
  int64_t scale_steps;
  double sum = 0;  // of the means of M that made the scale
  int64_t sums = 0;
  DeadCounts dead_q, dead_k;
  double loss = 0;  // of the parts of a step; a caller that begins one sets it to 0
  std::optional<AttentionScorer> scorer;
  QualityMeter meter;
};

// Gives heads, as a score pass goes through their layers, what each of them is to guess. Heads of
// layers that the pass leaves out get nothing.
class HeadPass : public ScoreVisitor {
 public:
  using Visit = std::function<void(AttentionHead& head, const at::Tensor& x,
                                   const std::vector<at::Tensor>& actual)>;
  // All outlive the pass.
  HeadPass(const Decoder& decoder, const RowSpace& space, const AttentionScoreOptions& scores,
           std::vector<AttentionHead*> heads, Visit visit);

  void Attention(int64_t layer, const at::Tensor& x, const at::Tensor& q,
                 const at::Tensor& k) override;

 private:
  struct Joint {
    at::Tensor input;
    std::vector<at::Tensor> sums;  // of M over the layers so far, by document
  };

  const Decoder& decoder_;
  const RowSpace& space_;
  const AttentionScoreOptions& scores_;
  const std::vector<AttentionHead*> heads_;
  const Visit visit_;
  std::vector<Joint> joint_;  // by head
};

// The attention loss of lemo-spec section 5.4 and what it is made of, recorded for autograd when
// grad mode is on. `actual` has M of every document.
struct PredictionLoss {
  at::Tensor loss;       // scalar
  at::Tensor predicted;  // I / scale [B]
};
PredictionLoss AttentionLoss(const AttentionPredictor& predictor, const PredictorShape& shape,
                             const at::Tensor& a, const BlockLayout& blocks,
                             const std::vector<at::Tensor>& actual, kernels::Combine combine,
                             PathActivations* q_activations = nullptr,
                             PathActivations* k_activations = nullptr);

}  // namespace lemo::train
