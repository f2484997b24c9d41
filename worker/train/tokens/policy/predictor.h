// Policy `predictor`: blocks ranked by a trained predictor (worker/train/tokens/predictor).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/train/tokens/policy/policy.h"
#include "worker/train/tokens/predictor/artifact.h"
#include "worker/train/tokens/predictor/network.h"
#include "worker/train/tokens/scoring/attention_scores.h"

namespace lemo::train {

// Layers at which rows leave the stream, with scope nested; empty with any other.
std::vector<int64_t> NestedChoices(const TokenSettings& settings);

// What the choices of a run need of a predictor. The base has no fingerprint.
PredictorUse PredictorUseOf(const TokenSettings& settings, const DecoderConfig& config);

// The predictor that settings.spec.predictor names, a directory, if it fits. Errors name the field.
absl::StatusOr<Predictor> ReadFitting(const TokenSettings& settings, const Decoder& decoder);

// A choice for one layer asks its head. A choice for several asks the head that was trained for
// just that, the whole stack or a layer and all above it, and otherwise takes the mean of the
// layers' heads on the stream at hand.
class PredictorPolicy final : public TokenPolicy {
 public:
  // `predictor` fits; it is copied.
  PredictorPolicy(const TokenSettings& settings, const Decoder& decoder,
                  const Predictor& predictor);

  std::vector<float> Scores(const ScoreRequest& request) override;
  std::vector<float> TrueScores(const ScoreRequest& request) override;
  bool ReadsStream() const override { return true; }

  // From now on the head of that name, which reads the input of `layer`, is this one.
  void SetHead(const std::string& name, int64_t layer, const AttentionPredictor& head);

 private:
  const AttentionScorer* JointHead(const ScoreRequest& request) const;

  const Scope scope_;
  const Decoder& decoder_;
  const PredictorShape shape_;
  const AttentionScoreOptions truth_;  // what the heads have learnt to guess
  std::map<std::string, AttentionScorer> heads_;
  std::map<int64_t, MlpScorer> mlp_;
};

// With the predictor that settings.spec.predictor names.
absl::StatusOr<std::unique_ptr<TokenPolicy>> MakePredictorPolicy(const TokenSettings& settings,
                                                                 const Decoder& decoder);

// The same from one in memory, which must fit.
std::unique_ptr<TokenPolicy> MakePredictorPolicy(const TokenSettings& settings,
                                                 const Decoder& decoder,
                                                 const Predictor& predictor);

}  // namespace lemo::train
