// The run that trains a predictor, and how a run with policy `predictor` comes by its own.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lemo/v1/run_event.pb.h"
#include "lemo/v1/run_spec.pb.h"
#include "worker/train/loop/device.h"
#include "worker/train/loop/inputs.h"
#include "worker/train/plan/row_chooser.h"
#include "worker/train/tokens/predictor/artifact.h"

namespace lemo::train {

inline constexpr const char* kPredictorDirectory = "predictor";
// Training sequences on which a predictor is measured when no data is held out.
inline constexpr int64_t kSequencesMeasured = 8;

using EmitEvent = std::function<void(lemo::v1::RunEvent)>;

struct TrainedPredictor {
  std::filesystem::path dir;
  int64_t steps = 0;
  int64_t tokens = 0;
  double seconds = 0;  // in steps
  double loss = 0;     // of the last step
};

// Trains a predictor for the model of `inputs` on its data, as `spec.predictor`, `spec.train` and
// `spec.eval` say (defaults filled in), and writes it to `dir`. Emits `phase`, `step`, `eval` and
// `warning`. Cancelled when a signal stops it, and then nothing is written: a run takes minutes,
// and half a predictor is none.
absl::StatusOr<TrainedPredictor> TrainPredictor(const lemo::v1::RunSpec& spec, const Inputs& inputs,
                                                const Compute& compute,
                                                const std::filesystem::path& dir,
                                                const EmitEvent& emit);

// A run whose spec trains a predictor (`inputs.spec.predictor`): the same within its budget, if it
// has one, with a result event at the end. `forecast` is of the run, without what was measured.
// ResourceExhausted where the budget is below the forecast's high end.
absl::Status RunPredictor(const Inputs& inputs, const Compute& compute,
                          lemo::v1::RunForecast forecast, const std::filesystem::path& dir,
                          const EmitEvent& emit);

// What the weights of a model, and the training data, are known by in a predictor's card.
absl::StatusOr<std::string> BaseFingerprint(const lemo::v1::ModelSpec& model);
absl::StatusOr<std::string> DataFingerprint(const lemo::v1::DataSpec& data);

// The predictor that tokens.predictor names, which fits the model and the run's choices. Errors
// name the field.
absl::StatusOr<Predictor> NamedPredictor(const lemo::v1::RunSpec& spec,
                                         const DecoderConfig& config);

// For policy `predictor`; nothing to do for any other: makes `tokens.predictor` of inputs->spec the
// directory of a predictor that fits model and settings. `auto` is the newest such one under
// tokens.predictors_dir; where there is none and `may_train`, one is trained on the run's data and
// put there. Errors name the field, and how to train one.
absl::Status ResolvePredictor(const Compute& compute, bool may_train, const EmitEvent& emit,
                              Inputs* inputs);

// Whether a run may begin with a predictor that has learnt nothing, where none is found.
bool BeginsAnew(const lemo::v1::TokensSpec& tokens);

// What the networks of inputs.spec.tokens.predictor cost, in `type`, or those of the one that a run
// begins anew; nullopt for other policies, and where the predictor is still to be found (`auto`) or
// cannot be read.
std::optional<PredictorFacts> PredictorFactsOf(const Inputs& inputs, at::ScalarType type);

}  // namespace lemo::train
