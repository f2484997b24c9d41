#include "worker/agent/limits.h"

#include <sys/stat.h>

#include <string>

#include "absl/strings/str_format.h"

namespace lemo::agent {
namespace {

lemo::v1::Failure Failed(const std::string& message, const std::string& advice) {
  lemo::v1::Failure failure;
  failure.set_kind(lemo::v1::Failure::LIMIT_EXCEEDED);
  failure.set_message(message);
  failure.set_advice(advice);
  return failure;
}

}  // namespace

std::optional<lemo::v1::Failure> Exceeded(const lemo::v1::LimitSpec& limits, const Usage& usage) {
  if (limits.has_run_seconds() && usage.run_seconds > limits.run_seconds()) {
    return Failed(absl::StrFormat("limits.run_seconds: ran for %.1f s, %.1f s are allowed",
                                  usage.run_seconds, limits.run_seconds()),
                  "Raise limits.run_seconds, or train fewer steps.");
  }
  if (limits.has_disk_bytes() && usage.disk_bytes > limits.disk_bytes()) {
    return Failed(
        absl::StrFormat("limits.disk_bytes: the job's directory has %d bytes, %d are allowed",
                        usage.disk_bytes, limits.disk_bytes()),
        "Raise limits.disk_bytes, or keep fewer checkpoints (checkpoint.keep_last).");
  }
  if (limits.has_host_memory_bytes() && usage.host_memory_bytes > limits.host_memory_bytes()) {
    return Failed(absl::StrFormat(
                      "limits.host_memory_bytes: the ranks have %d bytes resident, %d are allowed",
                      usage.host_memory_bytes, limits.host_memory_bytes()),
                  "Raise limits.host_memory_bytes, or choose a cheaper memory.policy.");
  }
  return std::nullopt;
}

int64_t DirectoryBytes(const std::filesystem::path& directory) {
  int64_t bytes = 0;
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator entry(directory, error), end;
       !error && entry != end; entry.increment(error)) {
    struct stat info;
    if (::lstat(entry->path().c_str(), &info) == 0 && S_ISREG(info.st_mode)) {
      // A file of two names, while a checkpoint is handed over, counts once.
      bytes += static_cast<int64_t>(info.st_blocks) * 512 / static_cast<int64_t>(info.st_nlink);
    }
  }
  return bytes;
}

}  // namespace lemo::agent
