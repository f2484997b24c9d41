// The parts of the benchmark. Each starts coordinators of its own under settings.scratch and ends
// them.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "bench/control_plane/figures.h"
#include "bench/control_plane/service.h"

namespace lemo::bench {

// 32 clients that submit one job after the other.
absl::StatusOr<std::vector<Figure>> MeasureSubmissions(const Settings& settings);
// Lag from an agent that sends an event to each watcher that has it.
absl::StatusOr<std::vector<Figure>> MeasureWatchers(const Settings& settings);
// Pages of a long list of jobs, the memory that the coordinator then takes, and its start.
absl::StatusOr<std::vector<Figure>> MeasureLongList(const Settings& settings);
// From nothing to a coordinator that serves and a worker that is ready.
absl::StatusOr<std::vector<Figure>> MeasureStart(const Settings& settings);
// One job through the service against lemo-train by itself: the way to the first step, and the time
// of steps.
absl::StatusOr<std::vector<Figure>> MeasureRuns(const Settings& settings);

}  // namespace lemo::bench
