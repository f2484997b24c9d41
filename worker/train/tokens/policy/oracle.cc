// Policy `oracle`: the true scores, which a predictor has to guess.
//
// Costly by design: the scores of one layer take its projections again and all pairs of rows, those
// of several layers (scopes group, nested, stack) a dense forward pass through them besides. It
// shows in studies what the best guess would be worth, and saves no time.
#include "worker/train/tokens/policy/oracle.h"

#include <ATen/ATen.h>

#include "worker/train/tokens/scoring/host_scores.h"
#include "worker/train/tokens/scoring/mlp_scores.h"

namespace lemo::train {
namespace {

class OraclePolicy final : public TokenPolicy {
 public:
  OraclePolicy(const TokenSettings& settings, const Decoder& decoder)
      : options_(ScoreOptionsOf(settings.spec)), decoder_(decoder) {}

  std::vector<float> Scores(const ScoreRequest& request) override {
    return OracleScores(decoder_, request, options_);
  }
  bool ReadsStream() const override { return true; }

 private:
  AttentionScoreOptions options_;
  const Decoder& decoder_;
};

}  // namespace

std::vector<float> OracleScores(const Decoder& decoder, const ScoreRequest& request,
                                const AttentionScoreOptions& options) {
  return OnHost(request.sub_block == ScoreRequest::SubBlock::kMlp
                    ? MlpScores(decoder, request.layer, request.stream, request.space.blocks())
                    : MeanAttentionScores(decoder, request.layer, request.end_layer, request.stream,
                                          request.space, options));
}

std::unique_ptr<TokenPolicy> MakeOraclePolicy(const TokenSettings& settings,
                                              const Decoder& decoder) {
  return std::make_unique<OraclePolicy>(settings, decoder);
}

}  // namespace lemo::train
