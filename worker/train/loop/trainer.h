// A run from its spec to its published result: the life of lemo-train after the command line.
#pragma once

#include "absl/status/status.h"
#include "common/violations.h"
#include "lemo/v1/run_spec.pb.h"
#include "worker/train/parallel/gang.h"
#include "worker/train/report/event_sink.h"
#include "worker/train/spec/run_options.h"

namespace lemo::train {

// Trains, evaluates, saves and publishes, reporting to `sink`. Returns OK when the result was
// published, loaded again and compared. A run stopped by a signal saves a checkpoint, reports
// `interrupted` and returns Cancelled. Errors of the user are InvalidArgument, NotFound,
// FailedPrecondition or PermissionDenied; `violations` then holds the single faults, if there are
// any. libtorch's exceptions pass.
//
// All ranks of `gang` call; the lead alone reports and writes, what the others find wrong reaches
// it.
absl::Status Train(const RunOptions& options, const lemo::v1::RunSpec& spec, Gang& gang,
                   EventSink& sink, Violations* violations);

}  // namespace lemo::train
