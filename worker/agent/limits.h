// What a job allowed itself, against what it takes.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <optional>

#include "lemo/v1/job.pb.h"
#include "lemo/v1/job_spec.pb.h"

namespace lemo::agent {

struct Usage {
  double run_seconds = 0;  // over all attempts
  int64_t disk_bytes = 0;
  int64_t host_memory_bytes = 0;
};

// The first limit that is exceeded, as a LIMIT_EXCEEDED failure with both figures; nullopt when
// none is. Limits that are not given hold nothing.
std::optional<lemo::v1::Failure> Exceeded(const lemo::v1::LimitSpec& limits, const Usage& usage);

// Bytes on disk of all files under `directory`; links are not followed. Files that come and go
// meanwhile may or may not count.
int64_t DirectoryBytes(const std::filesystem::path& directory);

}  // namespace lemo::agent
