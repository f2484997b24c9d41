// The engine of one rank: model, tuner, tape, objective and optimizer, put together by a spec.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "lemo/v1/run_spec.pb.h"
#include "worker/train/data/batch.h"
#include "worker/train/loop/device.h"
#include "worker/train/model/decoder.h"
#include "worker/train/model/weights.h"
#include "worker/train/objective/objective.h"
#include "worker/train/optim/adamw.h"
#include "worker/train/tape/tape.h"
#include "worker/train/tuner/tuner.h"

namespace lemo::train {

struct StepResult {
  double loss = 0;       // mean over the labelled tokens of the effective batch, before the update
  double grad_norm = 0;  // before clipping
};

struct EvalResult {
  LossSums sums;
  double seconds = 0;
  double Loss() const { return sums.loss / static_cast<double>(sums.labelled); }
};

// Not thread-safe. Functions let libtorch's exceptions pass (out of memory).
class Engine {
 public:
  // Loads or draws the weights and sizes all buffers for micro-batches of at most `max_rows` rows.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const lemo::v1::RunSpec& spec,
                                                        const DecoderConfig& config,
                                                        const Compute& compute, int64_t max_rows);
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // One optimizer step on an effective batch. `step` counts from 0. Internal with step, rows and
  // the first bad tensor's name when the loss or a gradient is not finite; the parameters are then
  // unchanged.
  absl::StatusOr<StepResult> Step(const Batch& batch, int64_t step, double learning_rate);

  // The loss over what `next` gives until it gives nothing.
  EvalResult Evaluate(const std::function<std::optional<MicroBatch>()>& next);

  // Logits [rows, vocabulary] in fp32 of one micro-batch of at most max_rows rows.
  at::Tensor Logits(const MicroBatch& batch);

  Decoder& decoder() { return decoder_; }
  const ModelWeights& weights() const { return weights_; }
  Tuner& tuner() { return *tuner_; }
  Trainables& trainables() { return trainables_; }
  AdamW& optimizer() { return *optimizer_; }
  const Tape& tape() const { return *tape_; }
  int64_t parameters() const;

 private:
  Engine(const lemo::v1::RunSpec& spec, DecoderConfig config, ModelWeights weights);
  std::string NameBadTensor(const MicroBatch& batch, const Tape::Options& options);

  lemo::v1::RunSpec spec_;
  ModelWeights weights_;
  Decoder decoder_;
  std::unique_ptr<Tuner> tuner_;
  Trainables trainables_;
  std::unique_ptr<Tape> tape_;
  std::unique_ptr<CrossEntropyObjective> objective_;
  std::unique_ptr<AdamW> optimizer_;
};

// One policy a layer, from memory.policy and memory.layers.
absl::StatusOr<std::vector<StoragePolicy>> PoliciesOf(const lemo::v1::MemorySpec& spec,
                                                      int64_t layers);

}  // namespace lemo::train
