#include "worker/train/loop/run_predictor.h"

#include <optional>
#include <string>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/status_macros.h"
#include "worker/train/data/batches.h"
#include "worker/train/loop/device_batch.h"
#include "worker/train/model/weights.h"
#include "worker/train/tokens/predictor/artifact.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;

// What a card says beside what the networks are.
absl::Status Sign(const Inputs& inputs, Predictor* predictor) {
  PredictorCard& card = predictor->card;
  LEMO_ASSIGN_OR_RETURN(card.base.fingerprint, BaseFingerprint(inputs.spec.model()));
  LEMO_ASSIGN_OR_RETURN(card.data_fingerprint, DataFingerprint(inputs.spec.data()));
  card.sequence_length = inputs.spec.data().max_length();
  card.held_out = inputs.eval.has_value();
  card.created = absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::Now(), absl::UTCTimeZone());
  card.lemo_version = kLemoVersion;
  return absl::OkStatus();
}

// For the model and settings of `inputs`: one that has learnt nothing.
absl::StatusOr<Predictor> BeginPredictor(const Inputs& inputs) {
  Violations violations;
  const TokenSettings settings =
      MakeTokenSettings(inputs.spec.tokens(), inputs.config.layers, &violations);
  LEMO_RETURN_IF_ERROR(violations.ToStatus());
  Predictor predictor = FreshPredictor(settings, inputs.config, inputs.spec.train().seed());
  LEMO_RETURN_IF_ERROR(Sign(inputs, &predictor));
  return predictor;
}

}  // namespace

absl::Status ChoosePredictor(const Compute& compute, bool leads, const EmitEvent& emit,
                             Inputs* inputs) {
  lemo::v1::TokensSpec* tokens = inputs->spec.mutable_tokens();
  const bool chooses = tokens->policy() == "predictor" && tokens->predictor() == "auto";
  const fs::path chosen = fs::path(inputs->spec.output().dir()) / kChosenPredictor;
  const bool has_chosen = chooses && fs::exists(chosen);
  if (has_chosen) tokens->set_predictor(chosen.string());
  // What training one takes is in no budget, and a run whose predictor learns needs none.
  const bool may_train =
      leads && !inputs->spec.memory().has_budget_bytes() && !tokens->has_online();
  const absl::Status found = ResolvePredictor(compute, may_train, emit, inputs);
  if (absl::IsNotFound(found) && chooses && !has_chosen && BeginsAnew(*tokens)) {
    lemo::v1::RunEvent event;
    event.mutable_phase()->set_name("predictor");
    event.mutable_phase()->set_detail("none fits; a new one learns as the run goes");
    emit(std::move(event));
    LEMO_ASSIGN_OR_RETURN(const Predictor fresh, BeginPredictor(*inputs));
    tokens->set_predictor(chosen.string());
    return WritePredictor(fresh, chosen);
  }
  LEMO_RETURN_IF_ERROR(found);
  if (!chooses || has_chosen || !leads) return absl::OkStatus();
  LEMO_ASSIGN_OR_RETURN(const Predictor predictor, ReadPredictor(tokens->predictor()));
  return WritePredictor(predictor, chosen);
}

absl::Status FillWarmup(int64_t steps, lemo::v1::RunSpec* spec) {
  if (!spec->tokens().has_online()) return absl::OkStatus();
  LEMO_ASSIGN_OR_RETURN(const Predictor predictor, ReadPredictor(spec->tokens().predictor()));
  FillWarmup(steps, /*fresh=*/predictor.card.steps == 0, spec->mutable_tokens());
  return absl::OkStatus();
}

absl::StatusOr<fs::path> PublishPredictor(Engine& engine, const Inputs& inputs,
                                          const Published& published) {
  OnlinePolicy& online = *engine.online();
  const Dataset& data = inputs.eval ? *inputs.eval : *inputs.train;
  // In a budget one document at a time.
  const int64_t rows =
      inputs.spec.memory().has_budget_bytes() ? 1 : inputs.spec.train().micro_batch_tokens();
  EvalBatches batches(&data, rows,
                      inputs.eval ? inputs.spec.eval().max_sequences() : kSequencesMeasured);
  online.BeginMeasuring();
  while (const std::optional<MicroBatch> batch = batches.Next()) {
    const DeviceBatch device = ToDevice(*batch, engine.decoder(), engine.tokens().block);
    online.Measure(device.tokens, *device.space);
  }
  Predictor predictor = online.Make();
  LEMO_RETURN_IF_ERROR(Sign(inputs, &predictor));
  if (published.adapter_dir.empty()) {
    LEMO_ASSIGN_OR_RETURN(predictor.card.base.fingerprint, WeightsFingerprint(published.model_dir));
  }
  const fs::path dir = fs::path(inputs.spec.output().dir()) / kPredictorDirectory;
  LEMO_RETURN_IF_ERROR(WritePredictor(predictor, dir));
  // What was written is what will be read, or it is no result.
  LEMO_RETURN_IF_ERROR(ReadPredictor(dir).status());
  return dir;
}

}  // namespace lemo::train
