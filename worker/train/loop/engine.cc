#include "worker/train/loop/engine.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/train/loop/device_batch.h"
#include "worker/train/memory/counting_allocator.h"

namespace lemo::train {
namespace {

absl::StatusOr<ModelWeights> MakeWeights(const lemo::v1::RunSpec& spec, const DecoderConfig& config,
                                         const Compute& compute) {
  const ScopedMemoryCategory category(MemoryCategory::kWeights);
  if (spec.model().has_random_init()) {
    return RandomWeights(config, spec.model().random_init().seed(), compute.type, compute.device);
  }
  return LoadWeights(spec.model().path(), config, compute.type, compute.device);
}

// Every micro-batch of a run draws other dropout masks.
int64_t DropoutSeed(uint32_t seed, int64_t step, size_t micro_batch) {
  return static_cast<int64_t>(seed) + (step << 32) + (static_cast<int64_t>(micro_batch) << 20);
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
  LEMO_ASSIGN_OR_RETURN(ModelWeights weights, MakeWeights(spec, config, compute));
  CountExternalMemory(MemoryCategory::kWeights, weights.MappedBytes());
  std::unique_ptr<Engine> engine(new Engine(spec, config, std::move(weights)));
  LEMO_ASSIGN_OR_RETURN(engine->tuner_, MakeTuner(spec.tuner()));
  LEMO_ASSIGN_OR_RETURN(engine->trainables_,
                        engine->tuner_->Attach(engine->decoder_, spec.train().seed()));
  TapeOptions options;
  LEMO_ASSIGN_OR_RETURN(options.policies, PoliciesOf(spec.memory(), config.layers));
  options.mlp_tile_rows = spec.memory().mlp_tile_rows();
  engine->tape_ =
      std::make_unique<Tape>(engine->decoder_, engine->trainables_, std::move(options), max_rows);
  engine->objective_ = std::make_unique<CrossEntropyObjective>(
      engine->decoder_, engine->trainables_, spec.memory().loss_segment_rows());
  engine->optimizer_ = std::make_unique<AdamW>(
      engine->trainables_, AdamWOptions{.beta1 = spec.train().beta1(),
                                        .beta2 = spec.train().beta2(),
                                        .epsilon = spec.train().epsilon(),
                                        .weight_decay = spec.train().weight_decay()});
  return engine;
}

absl::StatusOr<StepResult> Engine::Step(const Batch& batch, int64_t step, double learning_rate) {
  ZeroGradients(trainables_);
  // The divisor counts the labels of all micro-batches, so that the split changes nothing.
  const double scale = 1.0 / static_cast<double>(batch.labelled_tokens);
  LossSums sums;
  for (size_t i = 0; i < batch.micro_batches.size(); ++i) {
    const MicroBatch& micro_batch = batch.micro_batches[i];
    const DeviceBatch device = ToDevice(micro_batch, decoder_);
    const Tape::Options options{.dropout_seed = DropoutSeed(spec_.train().seed(), step, i)};
    const at::Tensor stream =
        tape_->Forward(device.tokens, RowPlan::Dense(decoder_.config, device.rows), options,
                       /*for_backward=*/true);
    const LossSums part = objective_->LossAndGradient(stream, device.labels, scale);
    if (!std::isfinite(part.loss)) {
      return absl::InternalError(absl::StrCat(
          "step ", step + 1, ": the loss of micro-batch ", i + 1, " of ",
          batch.micro_batches.size(), " (", micro_batch.rows(),
          " rows) is not finite; first bad tensor: ", NameBadTensor(micro_batch, options),
          ". Parameters were not updated."));
    }
    sums.Add(part);
    tape_->Backward(stream);
  }
  StepResult result{sums.loss * scale, GlobalGradientNorm(trainables_)};
  if (!std::isfinite(result.grad_norm)) {
    return absl::InternalError(
        absl::StrCat("step ", step + 1, ": a gradient over ", batch.tokens,
                     " rows is not finite; first bad tensor: ", FirstBadGradient(trainables_),
                     ". Parameters were not updated."));
  }
  const double limit = spec_.train().max_grad_norm();
  // torch.nn.utils.clip_grad_norm_'s formula.
  const double clip = limit > 0 ? std::min(1.0, limit / (result.grad_norm + 1e-6)) : 1.0;
  optimizer_->Step(learning_rate, clip);
  Synchronize(decoder_.device);
  return result;
}

std::string Engine::NameBadTensor(const MicroBatch& batch, const Tape::Options& options) {
  for (const Trainable& trainable : trainables_) {
    if (!trainable.value.isfinite().all().item<bool>()) return trainable.name;
  }
  for (const auto& [name, tensor] : weights_.tensors()) {
    if (!tensor.isfinite().all().item<bool>()) return name;
  }
  const DeviceBatch device = ToDevice(batch, decoder_);
  Tape::Options checked = options;
  checked.check_finite = true;
  tape_->Forward(device.tokens, RowPlan::Dense(decoder_.config, device.rows), checked, true);
  return tape_->first_bad().empty() ? "logits" : absl::StrCat("output of ", tape_->first_bad());
}

EvalResult Engine::Evaluate(const std::function<std::optional<MicroBatch>()>& next) {
  const auto start = std::chrono::steady_clock::now();
  EvalResult result;
  while (const std::optional<MicroBatch> batch = next()) {
    const DeviceBatch device = ToDevice(*batch, decoder_);
    const at::Tensor stream = tape_->Forward(
        device.tokens, RowPlan::Dense(decoder_.config, device.rows), {}, /*for_backward=*/false);
    result.sums.Add(objective_->Loss(stream, device.labels));
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

at::Tensor Engine::Logits(const MicroBatch& batch) {
  const DeviceBatch device = ToDevice(batch, decoder_);
  return objective_->Logits(tape_->Forward(
      device.tokens, RowPlan::Dense(decoder_.config, device.rows), {}, /*for_backward=*/false));
}

int64_t Engine::parameters() const {
  int64_t count = 0;
  for (const auto& [name, tensor] : weights_.tensors()) count += tensor.numel();
  return count;
}

}  // namespace lemo::train
