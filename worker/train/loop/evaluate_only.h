// The command that trains nothing.
#pragma once

#include "absl/status/status.h"
#include "common/violations.h"
#include "lemo/v1/run_spec.pb.h"
#include "worker/train/report/event_sink.h"

namespace lemo::train {

// Evaluates the model as the spec makes it (with init_from: that adapter) and reports `eval` and
// `result`. Errors as Train's.
absl::Status EvaluateOnly(const lemo::v1::RunSpec& spec, EventSink& sink, Violations* violations);

}  // namespace lemo::train
