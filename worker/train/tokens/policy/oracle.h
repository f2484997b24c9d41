// True scores of a choice, which policy `oracle` ranks by and a predictor has to guess.
#pragma once

#include <vector>

#include "worker/train/tokens/policy/policy.h"
#include "worker/train/tokens/scoring/attention_scores.h"

namespace lemo::train {

// With adapters as they are now, from the rows that are in the stream: of one layer its projections
// again and all pairs of rows; of several a dense forward pass through them besides.
std::vector<float> OracleScores(const Decoder& decoder, const ScoreRequest& request,
                                const AttentionScoreOptions& options);

}  // namespace lemo::train
