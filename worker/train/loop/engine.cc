#include "worker/train/loop/engine.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/train/data/random.h"
#include "worker/train/loop/spec_options.h"

namespace lemo::train {
namespace {

// Every micro-batch of a run draws other dropout masks.
int64_t DropoutSeed(uint32_t seed, int64_t step, size_t micro_batch) {
  return static_cast<int64_t>(seed) + (step << 32) + (static_cast<int64_t>(micro_batch) << 20);
}

// What buffers are made for before the first step: all rows of the stream, which evaluation needs,
// and what a pass of all rows keeps if the run has one. Passes that keep fewer rows say so
// themselves.
RowBounds FirstBounds(const TokenSettings& tokens, int64_t layers, int64_t max_rows) {
  // The first step of an annealing run is one of all rows.
  const bool dense_steps =
      tokens.warmup_steps > 0 || tokens.anneal_steps > 0 || tokens.cooldown_steps > 0 ||
      std::all_of(tokens.keep.begin(), tokens.keep.end(), [](double keep) { return keep >= 1; });
  if (dense_steps) return RowBounds::Dense(layers, max_rows);
  return {max_rows, std::vector<LayerRowCounts>(layers)};
}

// `rows` are the labelled rows of `batch`, in order.
void AppendRows(const MicroBatch& batch, const RowLosses& rows, int32_t first_document,
                EvalRows* result) {
  const at::Tensor losses = rows.loss.to(at::kCPU, at::kFloat).contiguous();
  const at::Tensor hits = rows.hit.to(at::kCPU, at::kLong).contiguous();
  const float* loss = losses.const_data_ptr<float>();
  const int64_t* hit = hits.const_data_ptr<int64_t>();
  for (size_t d = 0; d + 1 < batch.document_starts.size(); ++d) {
    for (int32_t i = batch.document_starts[d]; i < batch.document_starts[d + 1]; ++i) {
      if (batch.labels[i] == kIgnoreLabel) continue;
      result->loss.push_back(*loss++);
      result->hit.push_back(*hit++ != 0);
      result->position.push_back(batch.positions[i]);
      result->document.push_back(first_document + static_cast<int32_t>(d));
    }
  }
}

}  // namespace

absl::StatusOr<std::vector<StoragePolicy>> PoliciesOf(const lemo::v1::MemorySpec& spec,
                                                      int64_t layers) {
  LEMO_ASSIGN_OR_RETURN(const StoragePolicy policy, ParseStoragePolicy(spec.policy()));
  std::vector<StoragePolicy> policies(layers, policy);
  for (const lemo::v1::LayerPolicy& run : spec.layers()) {
    LEMO_ASSIGN_OR_RETURN(const StoragePolicy other, ParseStoragePolicy(run.policy()));
    for (int64_t i = run.first(); i <= std::min<int64_t>(run.last(), layers - 1); ++i) {
      policies[i] = other;
    }
  }
  return policies;
}

Engine::Engine(const lemo::v1::RunSpec& spec, DecoderConfig config, ModelWeights weights)
    : spec_(spec), weights_(std::move(weights)), decoder_(std::move(config), weights_) {}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const lemo::v1::RunSpec& spec,
                                                       const DecoderConfig& config,
                                                       const Compute& compute, int64_t max_rows) {
  LEMO_ASSIGN_OR_RETURN(ModelWeights weights, WeightsOf(spec.model(), config, compute));
  std::unique_ptr<Engine> engine(new Engine(spec, config, std::move(weights)));
  LEMO_ASSIGN_OR_RETURN(engine->tuner_, MakeTuner(spec.tuner()));
  LEMO_ASSIGN_OR_RETURN(engine->trainables_,
                        engine->tuner_->Attach(engine->decoder_, spec.train().seed()));
  TapeOptions options;
  LEMO_ASSIGN_OR_RETURN(options.policies, PoliciesOf(spec.memory(), config.layers));
  options.mlp_tile_rows = spec.memory().mlp_tile_rows();
  Violations violations;
  engine->tokens_ = MakeTokenSettings(spec.tokens(), config.layers, &violations);
  LEMO_RETURN_IF_ERROR(violations.ToStatus());
  if (engine->tokens_.policy == "table") {
    // Shares the loaded weights, which no tuner writes to.
    auto table = std::make_unique<TablePolicy>(engine->tokens_, Decoder(config, engine->weights_),
                                               spec.memory().loss_segment_rows());
    engine->table_ = table.get();
    engine->policy_ = std::move(table);
  } else if (!engine->tokens_.dense()) {
    LEMO_ASSIGN_OR_RETURN(engine->policy_, MakeTokenPolicy(engine->tokens_, engine->decoder_));
  }
  engine->tape_ = std::make_unique<Tape>(engine->decoder_, engine->trainables_, std::move(options),
                                         FirstBounds(engine->tokens_, config.layers, max_rows));
  engine->objective_ = std::make_unique<CrossEntropyObjective>(
      engine->decoder_, engine->trainables_, spec.memory().loss_segment_rows());
  engine->optimizer_ = std::make_unique<AdamW>(engine->trainables_, AdamWOptionsOf(spec.train()));
  return engine;
}

TokenPlan Engine::MakePlan(const DeviceBatch& device, const MicroBatch& batch,
                           std::vector<double> keep, uint64_t draw) {
  std::vector<uint8_t> labelled(batch.labels.size());
  std::transform(batch.labels.begin(), batch.labels.end(), labelled.begin(),
                 [](int32_t label) { return label != kIgnoreLabel; });
  return TokenPlan(tokens_, *policy_, decoder_, *device.space,
                   {.keep = std::move(keep),
                    .labelled = std::move(labelled),
                    .document_rows = batch.document_rows,
                    .tokens = device.tokens,
                    .labels = device.labels,
                    .draw = draw});
}

Engine::Pass Engine::Forward(const DeviceBatch& device, TokenPlan* plan, Tape::Options options,
                             bool for_backward) {
  if (plan == nullptr) {
    if (for_backward) {
      tape_->Reserve(RowBounds::Dense(decoder_.config.layers, device.space->rows()));
    }
    return {tape_->Forward(device.tokens, device.space, nullptr, options, for_backward),
            device.labels};
  }
  std::shared_ptr<const RowSpace> space = device.space;
  at::Tensor tokens = device.tokens, labels = device.labels;
  if (const BlocksKept entering = plan->Enter(*space)) {
    const at::Tensor rows = space->Indices(*entering);
    tokens = tokens.index_select(0, rows);
    labels = labels.index_select(0, rows);
    space = space->Shrunk(*entering);
  }
  // A pass that keeps nothing has room in what evaluation was sized for.
  if (for_backward) tape_->Reserve(plan->Bounds());
  options.keep_left_rows = !tokens_.loss_through;
  options.kv_all = tokens_.kv_all;
  Pass pass;
  pass.stream = tape_->Forward(tokens, space, plan, options, for_backward);
  if (tokens_.loss_through && tokens_.RowsComeBack()) {
    const std::vector<uint8_t> through = plan->ThroughRows();
    const at::Tensor mask =
        at::tensor(at::ArrayRef<uint8_t>(through), at::kByte).to(labels.device());
    labels = labels.masked_fill(mask.eq(0), kIgnoreLabel);
  }
  pass.labels = tape_->order() ? labels.index_select(0, *tape_->order()) : labels;
  return pass;
}

absl::StatusOr<StepResult> Engine::Step(const Batch& batch, const StepRequest& request) {
  ZeroGradients(trainables_);
  const int64_t step = request.step;
  const std::vector<double> keep = tokens_.KeepAt(step, request.steps);
  const bool sparse = std::any_of(keep.begin(), keep.end(), [](double share) { return share < 1; });
  // The divisor counts the labels of all micro-batches, so that the split changes nothing. Which of
  // them rows carry is known at the end only; the gradients are then scaled once.
  const double scale = 1.0 / static_cast<double>(batch.labelled_tokens);
  LossSums sums;
  StepResult result;
  SparsityCounts counts;
  for (size_t i = 0; i < batch.micro_batches.size(); ++i) {
    const MicroBatch& micro_batch = batch.micro_batches[i];
    const DeviceBatch device = ToDevice(micro_batch, decoder_, tokens_.block);
    const Tape::Options options{.dropout_seed = DropoutSeed(spec_.train().seed(), step, i)};
    std::optional<TokenPlan> plan;
    if (sparse) {
      plan.emplace(MakePlan(device, micro_batch, keep,
                            MixKeys(spec_.train().seed(), static_cast<uint64_t>(step), i)));
    }
    const Pass pass = Forward(device, plan ? &*plan : nullptr, options, /*for_backward=*/true);
    const LossSums part = objective_->LossAndGradient(pass.stream, pass.labels, scale);
    if (!std::isfinite(part.loss)) {
      return absl::InternalError(
          absl::StrCat("step ", step + 1, ": the loss of micro-batch ", i + 1, " of ",
                       batch.micro_batches.size(), " (", micro_batch.rows(),
                       " rows) is not finite; first bad tensor: ", NameBadTensor(device, options),
                       ". Parameters were not updated."));
    }
    sums.Add(part);
    tape_->Backward(pass.stream);
    if (!plan) continue;
    plan->AddTo(&counts);
    if (request.want_selections) {
      result.selections.push_back(plan->Selection());
      result.selections.back().set_step(static_cast<int32_t>(step + 1));
      result.selections.back().set_micro_batch(static_cast<int32_t>(i));
    }
  }
  if (sums.labelled == 0) {
    return absl::InternalError(absl::StrCat(
        "step ", step + 1, ": none of the ", batch.labelled_tokens,
        " labelled rows was kept; raise tokens.keep or set tokens.keep_labels. Parameters were not "
        "updated."));
  }
  if (sparse) result.sparsity = counts.Shares(batch.labelled_tokens, sums.labelled);
  if (sums.labelled != batch.labelled_tokens) {
    const double correction =
        static_cast<double>(batch.labelled_tokens) / static_cast<double>(sums.labelled);
    for (Trainable& trainable : trainables_) trainable.grad.mul_(correction);
  }
  result.loss = sums.Mean();
  result.grad_norm = GlobalGradientNorm(trainables_);
  if (!std::isfinite(result.grad_norm)) {
    return absl::InternalError(
        absl::StrCat("step ", step + 1, ": a gradient over ", batch.tokens,
                     " rows is not finite; first bad tensor: ", FirstBadGradient(trainables_),
                     ". Parameters were not updated."));
  }
  const double limit = spec_.train().max_grad_norm();
  // torch.nn.utils.clip_grad_norm_'s formula.
  const double clip = limit > 0 ? std::min(1.0, limit / (result.grad_norm + 1e-6)) : 1.0;
  optimizer_->Step(request.learning_rate, clip);
  Synchronize(decoder_.device);
  return result;
}

// Looked for in a pass of all rows: what is bad there is bad in a pass of some of them.
std::string Engine::NameBadTensor(const DeviceBatch& device, const Tape::Options& options) {
  for (const Trainable& trainable : trainables_) {
    if (!trainable.value.isfinite().all().item<bool>()) return trainable.name;
  }
  for (const auto& [name, tensor] : weights_.tensors()) {
    if (!tensor.isfinite().all().item<bool>()) return name;
  }
  Tape::Options checked = options;
  checked.check_finite = true;
  tape_->Forward(device.tokens, device.space, nullptr, checked, /*for_backward=*/false);
  return tape_->first_bad().empty() ? "logits" : absl::StrCat("output of ", tape_->first_bad());
}

EvalResult Engine::Evaluate(const std::function<std::optional<MicroBatch>()>& next,
                            const EvalOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  EvalResult result;
  int32_t documents = 0;
  for (uint64_t i = 0; const std::optional<MicroBatch> batch = next(); ++i) {
    const DeviceBatch device = ToDevice(*batch, decoder_, tokens_.block);
    const Pass pass = Forward(device, nullptr, {}, /*for_backward=*/false);
    RowLosses rows;
    result.sums.Add(objective_->Loss(pass.stream, pass.labels, options.rows ? &rows : nullptr));
    if (options.rows) AppendRows(*batch, rows, documents, &result.rows);
    documents += static_cast<int32_t>(batch->document_starts.size()) - 1;
    if (!options.sparse) continue;
    TokenPlan plan = MakePlan(device, *batch, tokens_.keep, MixKeys(spec_.train().seed(), i, 1));
    const Pass kept = Forward(device, &plan, {}, /*for_backward=*/false);
    if (!result.sparse) result.sparse.emplace();
    result.sparse->Add(objective_->Loss(kept.stream, kept.labels));
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

at::Tensor Engine::Logits(const MicroBatch& batch) {
  const DeviceBatch device = ToDevice(batch, decoder_, tokens_.block);
  return objective_->Logits(Forward(device, nullptr, {}, /*for_backward=*/false).stream);
}

int64_t Engine::parameters() const {
  int64_t count = 0;
  for (const auto& [name, tensor] : weights_.tensors()) count += tensor.numel();
  return count;
}

}  // namespace lemo::train
