// What the planner says of one run, before it: the run's own forecast, and what earlier runs like
// it say of the planner.
#pragma once

#include <string>
#include <vector>

#include "lemo/v1/plan.pb.h"
#include "lemo/v1/run_spec.pb.h"
#include "planner/offers/correction.h"
#include "planner/offers/offers.h"
#include "worker/train/model/family/decoder_config.h"
#include "worker/train/plan/plan_request.h"

namespace lemo::train {

// What a forecast's time is like, and the rates that it stands on: RunForecast without its numbers,
// of one rank.
lemo::v1::RunForecast ForecastKind(const planner::OfferRequest& request, const std::string& family,
                                   const lemo::v1::DeviceRates& rates);

// With the ranks of this offer of the request and the numbers that were foretold of it.
lemo::v1::RunForecast ForecastOfOffer(const planner::OfferRequest& request,
                                      const planner::Offer& offer, lemo::v1::RunForecast kind);

// Of the run that an effective spec is, on a gang that `parallel` in it divides. With a budget no
// more bytes than that, but of a predictor's training, which nothing makes smaller. Without
// calibrated `rates` its time is not foretold; where PlanRequestOf refuses the spec, nothing is but
// the kind that can be told.
lemo::v1::RunForecast ForecastOfRun(const lemo::v1::RunSpec& spec, const DecoderConfig& config,
                                    const PlanFacts& facts, const lemo::v1::DeviceRates& rates);

// Runs of `history` whose times tell of runs of this kind, newest first, and what they tell. Those
// that `history` names twice count once.
struct HistoryOfKind {
  std::vector<lemo::v1::RunTime> runs;
  planner::TimeCorrection correction;
};
HistoryOfKind FindHistory(const google::protobuf::RepeatedPtrField<lemo::v1::RunTime>& history,
                          const lemo::v1::RunForecast& kind);

}  // namespace lemo::train
