// Training of a predictor from the frozen model's own dense forward pass (lemo-spec sections 5 and
// 8).
//
// At each layer of the pass the true scores of all pairs of blocks are made, the layer's network
// predicts them, and its gradient is taken at once: no graph outlives a layer. What is learnt is M
// itself rather than the ranking, so that scores of layers stay comparable.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/train/model/decoder.h"
#include "worker/train/optim/adamw.h"
#include "worker/train/tokens/predictor/artifact.h"
#include "worker/train/tokens/predictor/head.h"
#include "worker/train/tokens/predictor/learner.h"
#include "worker/train/tokens/row_space.h"
#include "worker/train/tokens/scoring/attention_scores.h"

namespace lemo::train {

struct PredictorTrainingOptions {
  PredictorShape shape;
  AttentionScoreOptions scores;
  bool elastic = false;
  bool mlp = true;
  bool stack = true;
  std::vector<int64_t> above;  // layers that also get a head for all layers above
  uint64_t seed = 0;
  AdamWOptions adamw{.beta1 = 0.9, .beta2 = 0.95};
};

// Not thread-safe. Functions let libtorch's exceptions pass (out of memory). The decoder outlives
// it and is not changed.
class PredictorTraining {
 public:
  PredictorTraining(const Decoder& decoder, PredictorTrainingOptions options);
  ~PredictorTraining();

  // Rows of one micro-batch, whole documents; `tokens` int64 [rows].
  struct Sequences {
    at::Tensor tokens;
    std::shared_ptr<const RowSpace> space;
  };

  struct StepResult {
    double loss = 0;       // mean of the heads', before the update
    double grad_norm = 0;  // over all heads, before clipping
    int64_t pruned = 0;    // neurons
  };
  // One update of every head. Internal with step and head when a loss or gradient is not finite;
  // the heads that were updated before it stay so.
  absl::StatusOr<StepResult> Step(const std::vector<Sequences>& batch, double learning_rate);

  // Measures every head, with the copies that policies run, on what is given to Measure until
  // Finish. BeginMeasuring makes the copies.
  void BeginMeasuring();
  void Measure(const Sequences& sequences);
  std::map<std::string, HeadQuality> FinishMeasuring();

  // Shape, scores and heads as they are now (fp32 on the CPU); the rest of the card is the
  // caller's.
  Predictor Make() const;

  int64_t parameters() const;
  int64_t heads() const;

 private:
  class Pass;
  struct MlpState;

  const Decoder& decoder_;
  PredictorTrainingOptions options_;
  const HeadOptions head_options_;
  int64_t steps_ = 0;
  std::vector<std::unique_ptr<AttentionHead>> heads_;  // one a layer, then stack and above
  std::vector<std::unique_ptr<MlpState>> mlp_;
};

}  // namespace lemo::train
