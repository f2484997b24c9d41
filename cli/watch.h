// Following a job to its end.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "cli/context.h"

namespace lemo::cli {

// Prints the job's events from the beginning until it ends: a live line on a terminal, a line an
// event elsewhere, an object a line with `-o json` or `-o yaml` (a document each). Every event is
// printed once. When the stream breaks it is taken up behind the last event, for as long as the
// coordinator was heard of in the last ten minutes.
//
// The exit code of the job's last state, or 130 after Ctrl-C, which leaves the job alone.
absl::StatusOr<int> WatchJob(Context& context, const std::string& job);

}  // namespace lemo::cli
