#include <filesystem>

#include "worker/train/spec/spec.h"
#include "worker/train/tokens/settings.h"

namespace lemo::train {
namespace {

// spec->set_x(value) unless x is there.
#define LEMO_DEFAULT(message, field, value)                       \
  do {                                                            \
    if (!(message)->has_##field()) (message)->set_##field(value); \
  } while (false)

void FillData(const std::string& output_dir, lemo::v1::DataSpec* data) {
  LEMO_DEFAULT(data, packing, true);
  LEMO_DEFAULT(data, overlong, "auto");
  LEMO_DEFAULT(data, loss_on, "auto");
  if (!output_dir.empty()) {
    LEMO_DEFAULT(data, cache_dir, (std::filesystem::path(output_dir) / "cache").string());
  }
  if (data->has_skip_positions()) LEMO_DEFAULT(data->mutable_skip_positions(), chunks, 2);
  for (auto& file : *data->mutable_train()) LEMO_DEFAULT(&file, format, "auto");
  for (auto& file : *data->mutable_eval()) LEMO_DEFAULT(&file, format, "auto");
}

void FillLora(lemo::v1::LoraSpec* lora) {
  LEMO_DEFAULT(lora, rank, 8);
  LEMO_DEFAULT(lora, alpha, 16);
  LEMO_DEFAULT(lora, rslora, false);
  LEMO_DEFAULT(lora, dropout, 0);
  if (lora->targets_size() == 0) {
    for (const char* name : {"q_proj", "k_proj", "v_proj", "o_proj"}) lora->add_targets(name);
  }
}

void FillPredictor(lemo::v1::PredictorSpec* predictor) {
  LEMO_DEFAULT(predictor, kind, "token_pool");
  LEMO_DEFAULT(predictor, r1, 128);
  LEMO_DEFAULT(predictor, r2, 128);
  LEMO_DEFAULT(predictor, p, 64);
  LEMO_DEFAULT(predictor, block, 64);
  LEMO_DEFAULT(predictor, combine, "symmetric");
  LEMO_DEFAULT(predictor, score_rope, false);
  LEMO_DEFAULT(predictor, elastic, false);
  LEMO_DEFAULT(predictor, mlp, true);
  LEMO_DEFAULT(predictor, allocate, 0);
  if (predictor->allocate() > 0) {
    LEMO_DEFAULT(predictor, allocate_by, "loss_per_byte");
    LEMO_DEFAULT(predictor, allocate_mlp, "shared");
  }
}

// Where a predictor's run differs from a tuner's (lemo-spec section 5).
void FillPredictorTrain(lemo::v1::TrainSpec* train) {
  if (!train->has_epochs()) LEMO_DEFAULT(train, steps, 400);
  if (!train->has_batch_tokens()) LEMO_DEFAULT(train, batch_sequences, 1);
  LEMO_DEFAULT(train, learning_rate, 1e-3);
  LEMO_DEFAULT(train, min_learning_rate_ratio, 0.01);
  LEMO_DEFAULT(train, beta2, 0.95);
}

void FillTrain(bool full, lemo::v1::TrainSpec* train) {
  if (!train->has_steps()) LEMO_DEFAULT(train, epochs, 1);
  if (!train->has_batch_tokens()) LEMO_DEFAULT(train, batch_sequences, 4);
  LEMO_DEFAULT(train, learning_rate, full ? 1e-5 : 1e-4);
  LEMO_DEFAULT(train, schedule, "cosine");
  LEMO_DEFAULT(train, warmup_steps, 0);
  LEMO_DEFAULT(train, min_learning_rate_ratio, 0);
  LEMO_DEFAULT(train, weight_decay, 0);
  LEMO_DEFAULT(train, beta1, 0.9);
  LEMO_DEFAULT(train, beta2, 0.999);
  LEMO_DEFAULT(train, epsilon, 1e-8);
  LEMO_DEFAULT(train, max_grad_norm, 1);
  LEMO_DEFAULT(train, seed, 0);
}

void FillParallel(bool full, lemo::v1::ParallelSpec* parallel) {
  LEMO_DEFAULT(parallel, tensor, 0);
  LEMO_DEFAULT(parallel, data, 0);
  LEMO_DEFAULT(parallel, shard, full ? "optimizer" : "none");
  LEMO_DEFAULT(parallel, timeout_seconds, 300);
  LEMO_DEFAULT(parallel, bucket_bytes, int64_t{32} << 20);
  LEMO_DEFAULT(parallel, sequence, false);
}

}  // namespace

void FillDefaults(lemo::v1::RunSpec* spec) {
  LEMO_DEFAULT(spec, device, "auto");
  LEMO_DEFAULT(spec->mutable_model(), compute_type, "auto");
  FillData(spec->output().dir(), spec->mutable_data());
  if (spec->tuner().has_lora()) FillLora(spec->mutable_tuner()->mutable_lora());
  if (spec->has_predictor()) {
    FillPredictor(spec->mutable_predictor());
    FillPredictorTrain(spec->mutable_train());
  }
  FillTrain(spec->tuner().has_full(), spec->mutable_train());
  if (spec->has_tokens()) FillTokenDefaults(spec->mutable_tokens());
  LEMO_DEFAULT(spec->mutable_memory(), policy, "attn_out");
  FillParallel(spec->tuner().has_full(), spec->mutable_parallel());
  LEMO_DEFAULT(spec->mutable_eval(), every_steps, 0);
  LEMO_DEFAULT(spec->mutable_eval(), max_sequences, 0);
  LEMO_DEFAULT(spec->mutable_eval(), sparse, false);
  LEMO_DEFAULT(spec->mutable_eval(), write_rows, false);
  LEMO_DEFAULT(spec->mutable_checkpoint(), every_steps, 0);
  LEMO_DEFAULT(spec->mutable_checkpoint(), keep_last, 2);
  LEMO_DEFAULT(spec->mutable_checkpoint(), keep_best, false);
  LEMO_DEFAULT(spec->mutable_output(), merge, false);
}

}  // namespace lemo::train
