#include "worker/train/loop/spec_options.h"

#include <memory>

#include "common/model_files.h"
#include "common/status_macros.h"
#include "worker/train/memory/counting_allocator.h"

namespace lemo::train {

namespace {

// Of a shadow's sample, unless the spec says otherwise.
constexpr int64_t kShadowSequences = 8;

// A row's products with a layer's matrices cost 2 of them an element; causal attention over n rows
// costs it 2 * A * D * n.
double AttentionLength(const DecoderConfig& config) {
  const double wide = static_cast<double>(config.heads * config.head_dim);
  const double narrow = static_cast<double>(config.kv_heads * config.head_dim);
  const double mlp = config.mlp == DecoderConfig::Mlp::kSwiGlu ? 3 : 2;
  const double elements = static_cast<double>(config.hidden) *
                          (2 * wide + 2 * narrow + mlp * static_cast<double>(config.intermediate));
  return elements / wide;
}

}  // namespace

BatchOptions BatchOptionsOf(const lemo::v1::RunSpec& spec, const DecoderConfig& config) {
  return {.seed = spec.train().seed(),
          .max_length = spec.data().max_length(),
          .packing = spec.data().packing(),
          .batch_sequences = spec.train().batch_sequences(),
          .batch_tokens = spec.train().batch_tokens(),
          .micro_batch_tokens = spec.train().micro_batch_tokens(),
          .attention_length = AttentionLength(config),
          .skip = {.target = spec.data().skip_positions().target(),
                   .chunks = spec.data().skip_positions().chunks()}};
}

int64_t ShadowSequences(const lemo::v1::EvalSpec& eval) {
  return eval.has_shadow_sequences() ? eval.shadow_sequences() : kShadowSequences;
}

Schedule ScheduleOf(const lemo::v1::TrainSpec& train, int64_t total_steps) {
  return {.shape = ParseScheduleShape(train.schedule()).value_or(Schedule::Shape::kCosine),
          .peak = train.learning_rate(),
          .warmup_steps = train.warmup_steps(),
          .total_steps = total_steps,
          .min_ratio = train.min_learning_rate_ratio()};
}

AdamWOptions AdamWOptionsOf(const lemo::v1::TrainSpec& train) {
  return {.beta1 = train.beta1(),
          .beta2 = train.beta2(),
          .epsilon = train.epsilon(),
          .weight_decay = train.weight_decay()};
}

absl::StatusOr<ModelWeights> WeightsOf(const lemo::v1::ModelSpec& model,
                                       const DecoderConfig& config, const Compute& compute,
                                       WeightUse use, const ModelSplit* split) {
  const ScopedMemoryCategory category(MemoryCategory::kWeights);
  if (model.has_random_init()) {
    return RandomWeights(config, model.random_init().seed(), compute.type, compute.device, split);
  }
  std::unique_ptr<FrozenBases> bases;
  BaseSharing sharing;
  if (model.has_bases_dir() && use == WeightUse::kFrozen) {
    sharing.digest = model.weights_digest();
    if (sharing.digest.empty()) {
      LEMO_ASSIGN_OR_RETURN(sharing.digest, WeightsDigestOf(model.path()));
    }
    bases = compute.device.is_cpu() ? MakeFileBases(model.bases_dir())
                                    : MakeDeviceBases(model.bases_dir(), compute.device);
    sharing.bases = bases.get();
  }
  LEMO_ASSIGN_OR_RETURN(ModelWeights weights,
                        LoadWeights(model.path(), config, compute.type, compute.device, split,
                                    bases != nullptr ? &sharing : nullptr));
  if (compute.device.is_cpu()) {
    CountExternalMemory(MemoryCategory::kWeights, weights.MappedBytes());
  }
  return weights;
}

}  // namespace lemo::train
