// Offers as text and as a picture.
#pragma once

#include <string>

#include "absl/time/time.h"
#include "lemo/v1/plan.pb.h"

namespace lemo::cli {

// "all x2, attn_out x4".
std::string StorageText(const lemo::v1::Offer& offer);

// A table of the offers, the preferred one marked, or of the nearest ones and what each bound would
// have to become. `now` is what waiting is counted from.
std::string PlanText(const lemo::v1::PlanResult& plan, absl::Time now);

// How the figures of one of the plan's offers come about, and what it sets.
std::string ExplainText(const lemo::v1::Offer& offer, const lemo::v1::PlanResult& plan);

// "x1.08 from 5 finished runs"; "" where times are as they were foretold.
std::string CorrectionText(const lemo::v1::TimeCorrection& correction);

// The offers over memory and time as an SVG document that needs nothing else.
std::string PlanPlot(const lemo::v1::PlanResult& plan);

}  // namespace lemo::cli
