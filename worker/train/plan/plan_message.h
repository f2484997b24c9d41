// Offers as a message: what `--plan --json` prints and the service hands on.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "lemo/v1/plan.pb.h"
#include "lemo/v1/run_spec.pb.h"
#include "planner/offers/offers.h"
#include "worker/train/plan/forecast.h"

namespace lemo::train {

// The fields of a run spec that make a run of this offer, as Offer.overrides has them.
// `compute_type` is that of the forecast, which holds for no other: `float32`.
lemo::v1::RunSpec OverrideSpecOf(const planner::OfferRequest& request, const planner::Offer& offer,
                                 const std::string& compute_type);

// What a plan's times stand on.
struct PlanTimes {
  lemo::v1::DeviceRates rates;  // those of request.device
  std::string device_type;      // that the offers are bound to; empty: to none
  lemo::v1::RunForecast kind;   // ForecastKind
  // That request.time_ratios come from, by ranks.
  std::map<int64_t, HistoryOfKind> history;
  std::vector<std::string> notes;  // on the rates, for people
};

lemo::v1::PlanResult PlanMessage(const planner::OfferRequest& request,
                                 const planner::Offers& offers, const PlanTimes& times);

// The plans of one run on several types of devices as one. The offers stay apart: that one type
// would be better in all respects does not help while its devices are busy. `plans` has at least
// one; what is preferred, and its rates, are those of the first.
lemo::v1::PlanResult MergedPlans(std::vector<lemo::v1::PlanResult> plans);

}  // namespace lemo::train
