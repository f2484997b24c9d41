// Policy `predictor`: blocks ranked by a trained predictor (worker/train/tokens/predictor).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/train/tokens/policy/policy.h"
#include "worker/train/tokens/predictor/artifact.h"

namespace lemo::train {

// Layers at which rows leave the stream, with scope nested; empty with any other.
std::vector<int64_t> NestedChoices(const TokenSettings& settings);

// What the choices of a run need of a predictor. The base has no fingerprint.
PredictorUse PredictorUseOf(const TokenSettings& settings, const DecoderConfig& config);

// From the predictor that settings.spec.predictor names, a directory. Errors name the field.
absl::StatusOr<std::unique_ptr<TokenPolicy>> MakePredictorPolicy(const TokenSettings& settings,
                                                                 const Decoder& decoder);

// The same from one in memory, which must fit.
std::unique_ptr<TokenPolicy> MakePredictorPolicy(const TokenSettings& settings,
                                                 const Decoder& decoder,
                                                 const Predictor& predictor);

}  // namespace lemo::train
