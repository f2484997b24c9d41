// Databases with a past: what a coordinator would have stored, made by its own core.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace lemo::bench {

// What filled jobs and fake agents call the model's directory; nothing of it is read.
inline constexpr char kFakeModel[] = "/bench/model";

// Adds `count` jobs that have ended to the database of a coordinator's directory, each with a whole
// life: states, steps, result, artifacts. One of a hundred has failed. The newest is seconds old.
absl::Status AddEndedJobs(const std::string& directory, int64_t count);

// Adds jobs that are QUEUED and fit any worker.
absl::Status AddQueuedJobs(const std::string& directory, int count);

}  // namespace lemo::bench
