#include "worker/train/loop/spec_options.h"

#include "common/status_macros.h"
#include "worker/train/memory/counting_allocator.h"

namespace lemo::train {

BatchOptions BatchOptionsOf(const lemo::v1::RunSpec& spec) {
  return {.seed = spec.train().seed(),
          .max_length = spec.data().max_length(),
          .packing = spec.data().packing(),
          .batch_sequences = spec.train().batch_sequences(),
          .batch_tokens = spec.train().batch_tokens(),
          .micro_batch_tokens = spec.train().micro_batch_tokens()};
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
                                       const DecoderConfig& config, const Compute& compute) {
  const ScopedMemoryCategory category(MemoryCategory::kWeights);
  if (model.has_random_init()) {
    return RandomWeights(config, model.random_init().seed(), compute.type, compute.device);
  }
  LEMO_ASSIGN_OR_RETURN(ModelWeights weights,
                        LoadWeights(model.path(), config, compute.type, compute.device));
  CountExternalMemory(MemoryCategory::kWeights, weights.MappedBytes());
  return weights;
}

}  // namespace lemo::train
