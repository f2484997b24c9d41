// The engine of one rank: model, tuner, tape, objective and optimizer, put together by a spec.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
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
#include "worker/train/optim/sharded_trainables.h"
#include "worker/train/parallel/gang.h"
#include "worker/train/tape/tape.h"
#include "worker/train/tokens/policy/online.h"
#include "worker/train/tokens/policy/plan.h"
#include "worker/train/tokens/policy/table.h"
#include "worker/train/tuner/tuner.h"

namespace lemo::train {

struct StepRequest {
  int64_t step = 0;   // from 0
  int64_t steps = 0;  // of the run
  double learning_rate = 0;
  bool want_selections = false;
  // Share of the blocks that sparse layers keep at least (TokenSettings::Raised), and then at most
  // (TokenSettings::Capped).
  double keep_least = 0;
  double keep_most = 1;
  // Forward and backward alone, whose gradients are thrown away: nothing is updated, nothing
  // learnt, and the result is empty.
  bool rehearsal = false;
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

// Sums over the same labelled rows: those that carry loss when rows are dropped.
struct ShadowResult {
  LossSums dense;   // all rows computed
  LossSums sparse;  // the kept ones
  double seconds = 0;
};

// Not thread-safe. Functions let libtorch's exceptions pass (out of memory).
class Engine {
 public:
  // Loads or draws the weights and sizes all buffers for steps on micro-batches of at most
  // `max_rows` rows (where a plan decides how many of them are kept, and in a run with a budget,
  // buffers grow to the largest one met). Other passes, of any size, keep nothing and need a stream
  // alone. `gang`, arranged, outlives the engine; null for one rank. All ranks of a
  // gang call the same functions in the same order, those of a tensor group with the same batches.
  // InvalidArgument, before weights are read, where they cannot share the model.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const lemo::v1::RunSpec& spec,
                                                        const DecoderConfig& config,
                                                        const Compute& compute, int64_t max_rows,
                                                        Gang* gang = nullptr);
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // One optimizer step on an effective batch, of which `batch` has this rank's share. Internal with
  // step, rows and the first bad tensor's name when the loss or a gradient is not finite, or when
  // no labelled row was kept; the parameters are then unchanged.
  absl::StatusOr<StepResult> Step(const Batch& batch, const StepRequest& request);

  // The loss over what `next` gives until it gives nothing, with all rows. Data-parallel ranks, all
  // of which are given the same, divide the work, but for a result row by row.
  EvalResult Evaluate(const std::function<std::optional<MicroBatch>()>& next,
                      const EvalOptions& options = {});

  // What dropping rows does to the loss, over what `next` gives: each micro-batch with the shares
  // `keep` of the layers, and with all rows. Ranks divide the work as in Evaluate. For a run that
  // drops rows.
  ShadowResult Shadow(const std::function<std::optional<MicroBatch>()>& next,
                      const std::vector<double>& keep);

  // Logits [rows, vocabulary] in fp32 of one micro-batch.
  at::Tensor Logits(const MicroBatch& batch);

  // Of trainable `i`, whole, from and to what the ranks have of it (ShardedTrainables). All ranks
  // call.
  at::Tensor Whole(size_t i, const std::vector<at::Tensor>& pieces);
  void TakePart(size_t i, const at::Tensor& whole, const std::vector<at::Tensor>& pieces);
  std::vector<at::Tensor> WholeMasters();
  void SetMasters(const std::vector<at::Tensor>& whole);

  // Between steps. What layers keep from the next one on: the gradients stay the same.
  void SetStorage(std::vector<StoragePolicy> policies) { tape_->SetPolicies(std::move(policies)); }
  // Lets go of what the last pass left; with `buffers` also of the buffers (Tape::Release).
  void Release(bool buffers) { tape_->Release(buffers); }
  // Whether the last Step got as far as writing parameters: one that threw before can be done
  // again.
  bool updated() const { return updated_; }

  Decoder& decoder() { return decoder_; }
  const ModelWeights& weights() const { return weights_; }
  Tuner& tuner() { return *tuner_; }
  Trainables& trainables() { return trainables_; }
  const Trainables& trainables() const { return trainables_; }
  ShardedTrainables& sharded() { return *sharded_; }
  AdamW& optimizer() { return *optimizer_; }
  const Tape& tape() const { return *tape_; }
  // Null unless the run's policy is `table`. The scores do not change with training.
  TablePolicy* table() { return table_; }
  // Null unless the predictor learns on.
  OnlinePolicy* online() { return online_; }
  const TokenSettings& tokens() const { return tokens_; }
  // Of the whole model.
  int64_t parameters() const;

 private:
  // `split` null: the whole model.
  Engine(const lemo::v1::RunSpec& spec, const DecoderConfig& config, ModelWeights weights,
         const ModelSplit* split, Communicator* tensor);

  // What came out of one forward pass, on this rank.
  struct Pass {
    at::Tensor stream;  // [rows that are left, H]
    at::Tensor labels;  // int64, of those rows; -100 for those that carry no loss
  };
  // `plan` null: all rows everywhere.
  Pass Forward(const DeviceBatch& device, TokenPlan* plan, Tape::Options options,
               bool for_backward);
  // Those of the rows that the last forward pass left, as they lie.
  at::Tensor InOrder(const at::Tensor& labels) const;
  TokenPlan MakePlan(const DeviceBatch& device, const MicroBatch& batch, std::vector<double> keep,
                     uint64_t draw, TokenPlan::Looks looks = {});
  // Whether true scores can be made amid a step: this rank has all heads and all values of the
  // layers to come, and keeps to no budget that is not made for it.
  bool CanMeasure() const;
  // Gives this rank its micro-batches of those of `next`, with a number that each has on any rank;
  // who has none passes by, as often as it would have computed: `passes` times.
  void Share(const std::function<std::optional<MicroBatch>()>& next, bool divide, int passes,
             const std::function<void(const MicroBatch& batch, uint64_t number)>& pass);
  // Empty when what is bad is not found on this rank.
  std::string NameBadTensor(const DeviceBatch& device, const Tape::Options& options);
  // The sums of the data group, in place.
  void AddUp(std::vector<double>* numbers);
  void AddUp(LossSums* sums);
  // What the ranks have to say, in one sentence each; "" where none has anything.
  std::string FromAllRanks(const std::string& own);
  bool alone() const { return gang_->alone(); }

  lemo::v1::RunSpec spec_;
  std::unique_ptr<Gang> own_gang_;
  Gang* gang_ = nullptr;
  TokenSettings tokens_;
  ModelWeights weights_;
  Decoder decoder_;
  std::unique_ptr<Tuner> tuner_;
  Trainables trainables_;
  std::unique_ptr<Tape> tape_;
  std::unique_ptr<TokenPolicy> policy_;  // null in a dense run
  TablePolicy* table_ = nullptr;         // policy_, where it is one
  OnlinePolicy* online_ = nullptr;       // likewise
  std::unique_ptr<CrossEntropyObjective> objective_;
  std::unique_ptr<ShardedTrainables> sharded_;
  std::unique_ptr<AdamW> optimizer_;
  bool updated_ = false;
};

// One policy a layer, from memory.policy and memory.layers.
absl::StatusOr<std::vector<StoragePolicy>> PoliciesOf(const lemo::v1::MemorySpec& spec,
                                                      int64_t layers);

}  // namespace lemo::train
