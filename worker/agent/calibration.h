// What this machine's CPU was measured to do, which offers of jobs go by.
#pragma once

#include "absl/status/status.h"
#include "lemo/v1/plan.pb.h"
#include "worker/agent/options.h"

namespace lemo::agent {

// Those of a person's rates file (`rates` alone); nothing, and a line of what is wrong, for a file
// that cannot be read.
lemo::v1::PlanOptions KnownRates();

// Has lemo-train measure the CPU (half a minute) unless that file has the rates of this
// version for the threads of one of the devices. Ends with this process. An error where nothing was
// measured; the worker then goes without.
absl::Status CalibrateOnce(const AgentOptions& options);

}  // namespace lemo::agent
