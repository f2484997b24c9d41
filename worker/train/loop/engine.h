// The engine of one rank: model, tuner, tape, objective and optimizer, put together by a spec.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lemo/v1/run_event.pb.h"
#include "lemo/v1/run_spec.pb.h"
#include "worker/train/data/batch.h"
#include "worker/train/loop/device.h"
#include "worker/train/loop/device_batch.h"
#include "worker/train/loop/eval_rows.h"
#include "worker/train/model/decoder.h"
#include "worker/train/model/weights.h"
#include "worker/train/objective/objective.h"
#include "worker/train/optim/adamw.h"
#include "worker/train/tape/tape.h"
#include "worker/train/tokens/policy/plan.h"
#include "worker/train/tokens/policy/table.h"
#include "worker/train/tuner/tuner.h"

namespace lemo::train {

struct StepRequest {
  int64_t step = 0;   // from 0
  int64_t steps = 0;  // of the run
  double learning_rate = 0;
  bool want_selections = false;
};

struct StepResult {
  // Mean over the rows of the effective batch that carry loss, before the update.
  double loss = 0;
  double grad_norm = 0;                              // before clipping
  std::optional<lemo::v1::TokenSparsity> sparsity;   // of a step that drops rows
  std::vector<lemo::v1::SelectionEvent> selections;  // one a micro-batch, where wanted
};

struct EvalOptions {
  bool sparse = false;  // also with the rows that training would keep
  bool rows = false;    // also row by row
};

struct EvalResult {
  LossSums sums;
  std::optional<LossSums> sparse;
  EvalRows rows;
  double seconds = 0;
  double Loss() const { return sums.Mean(); }
};

// Not thread-safe. Functions let libtorch's exceptions pass (out of memory).
class Engine {
 public:
  // Loads or draws the weights and sizes all buffers for micro-batches of at most `max_rows` rows
  // (where a plan decides how many of them are kept, buffers grow to the largest one met).
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const lemo::v1::RunSpec& spec,
                                                        const DecoderConfig& config,
                                                        const Compute& compute, int64_t max_rows);
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // One optimizer step on an effective batch. Internal with step, rows and the first bad tensor's
  // name when the loss or a gradient is not finite, or when no labelled row was kept; the
  // parameters are then unchanged.
  absl::StatusOr<StepResult> Step(const Batch& batch, const StepRequest& request);

  // The loss over what `next` gives until it gives nothing, with all rows.
  EvalResult Evaluate(const std::function<std::optional<MicroBatch>()>& next,
                      const EvalOptions& options = {});

  // Logits [rows, vocabulary] in fp32 of one micro-batch of at most max_rows rows.
  at::Tensor Logits(const MicroBatch& batch);

  Decoder& decoder() { return decoder_; }
  const ModelWeights& weights() const { return weights_; }
  Tuner& tuner() { return *tuner_; }
  Trainables& trainables() { return trainables_; }
  AdamW& optimizer() { return *optimizer_; }
  const Tape& tape() const { return *tape_; }
  // Null unless the run's policy is `table`. The scores do not change with training.
  TablePolicy* table() { return table_; }
  int64_t parameters() const;

 private:
  Engine(const lemo::v1::RunSpec& spec, DecoderConfig config, ModelWeights weights);

  // What came out of one forward pass.
  struct Pass {
    at::Tensor stream;  // [rows that are left, H]
    at::Tensor labels;  // int64, of those rows; -100 for those that carry no loss
  };
  // `plan` null: all rows everywhere.
  Pass Forward(const DeviceBatch& device, TokenPlan* plan, Tape::Options options,
               bool for_backward);
  TokenPlan MakePlan(const DeviceBatch& device, const MicroBatch& batch, std::vector<double> keep,
                     uint64_t draw);
  std::string NameBadTensor(const DeviceBatch& device, const Tape::Options& options);

  lemo::v1::RunSpec spec_;
  TokenSettings tokens_;
  ModelWeights weights_;
  Decoder decoder_;
  std::unique_ptr<Tuner> tuner_;
  Trainables trainables_;
  std::unique_ptr<Tape> tape_;
  std::unique_ptr<TokenPolicy> policy_;  // null in a dense run
  TablePolicy* table_ = nullptr;         // policy_, where it is one
  std::unique_ptr<CrossEntropyObjective> objective_;
  std::unique_ptr<AdamW> optimizer_;
};

// One policy a layer, from memory.policy and memory.layers.
absl::StatusOr<std::vector<StoragePolicy>> PoliciesOf(const lemo::v1::MemorySpec& spec,
                                                      int64_t layers);

}  // namespace lemo::train
