// `lemo-train --plan`: what a run could be run as, before a weight is read.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "common/violations.h"
#include "lemo/v1/plan.pb.h"
#include "lemo/v1/run_spec.pb.h"
#include "worker/train/loop/device.h"
#include "worker/train/loop/inputs.h"
#include "worker/train/plan/plan_request.h"

namespace lemo::train {

struct PlanRunOptions {
  int64_t memory_bytes_max = 0;   // of one rank; 0 for no bound beside those of `options`
  lemo::v1::PlanOptions options;  // wishes, and rates that are known
  bool json = false;              // a PlanResult instead of the table
};

// What the planner is told of data that is open, and of the device that computes.
PlanFacts FactsOf(const Inputs& inputs, const Compute& compute, planner::DeviceRates device);

// The device's name, compute type and threads as they are now, without a rate.
lemo::v1::DeviceRates DeviceOf(const Compute& compute);

// Checks model and data as Validate does, tokenises, and answers the offers, a table or JSON, with
// a newline. Rates are those of `options`, else of the default rates file, else two small kernels
// are timed (half a second). Faults of spec, data and options are added to `violations`.
absl::StatusOr<std::string> PlanRun(const lemo::v1::RunSpec& spec, const PlanRunOptions& options,
                                    Violations* violations);

}  // namespace lemo::train
