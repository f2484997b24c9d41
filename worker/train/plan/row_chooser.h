// What a run's choice of rows costs, as the planner asks for it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "planner/memory/memory.h"
#include "worker/train/tokens/allocation.h"
#include "worker/train/tokens/settings.h"

namespace lemo::train {

// The networks of policy `predictor` that a run's choices ask.
struct PredictorFacts {
  int64_t held_bytes = 0;   // of all of them, in the run's compute type
  int64_t first_width = 0;  // neurons of the first layer of the widest one, both paths together
  bool flat_slice = false;
  planner::LearningHeads heads;  // the widest sizes
  int64_t parameters = 0;        // of those networks that guess attention's scores
  int64_t file_bytes = 0;        // of all networks of the predictor, as it is read
  int64_t steps = 0;             // that it has learnt, by its card
  double recall = 0;  // by its card, in the mean over them, at about the run's share; 0: not known
  AllocatedShares allocated;  // by its card; `keep` empty where it has none
};

// `predictor` is to be there for policy `predictor`: without it the planner refuses what comes of
// it.
planner::RowChooser ChooserOf(const TokenSettings& settings,
                              const std::optional<PredictorFacts>& predictor);

// What goes on learning (tokens.online); nothing without it. `predictor` as above.
planner::Lessons LessonsOf(const TokenSettings& settings,
                           const std::optional<PredictorFacts>& predictor);
// How many lessons a step has in the mean, where `dense_share` of them compute all rows.
double LessonsAStep(const TokenSettings& settings, double dense_share);

// What seconds are counted with: tokens.keep, or what passed the card's thresholds when it was
// written.
std::vector<double> SharesForTimeOf(const TokenSettings& settings,
                                    const std::optional<PredictorFacts>& predictor);

// What a table's numbers are made of, without rows; nullopt for other policies.
std::optional<planner::ScoredRows> TableOf(const TokenSettings& settings);

// Share of `steps` steps that compute all rows, those between all and `keep` counted by half.
double DenseShare(const TokenSettings& settings, int64_t steps);

// What leaving rows out so does to the loss of the run's own model before it is tuned, in nats, by
// the predictor's card: the rises of single layers added up. Absent where the card has nothing for
// such a choice.
std::optional<double> LossGapOf(const TokenSettings& settings,
                                const std::optional<PredictorFacts>& predictor);

// What is known of the quality of such a choice, in words: what the study found of the like on its
// model, and a predictor's recall. Empty for nothing.
std::string EvidenceOf(const TokenSettings& settings,
                       const std::optional<PredictorFacts>& predictor);
// The same of windows of `share` of the length, all of whose rows are computed.
std::string ShortWindowEvidence(double share);

}  // namespace lemo::train
