// What ranks write, one file an attempt and rank: DIR/<job id>/<attempt>-<rank>.log.
//
// Kept as they are sent, without promises: a gap (a lost chunk) is filled with a line that says so.
// Thread-safe.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lemo/v1/job_service.pb.h"

namespace lemo::coordinator {

class LogFiles {
 public:
  // A log that reaches `limit` bytes takes no more.
  explicit LogFiles(std::string directory, int64_t limit = int64_t{64} << 20);

  void Append(const std::string& job, const lemo::v1::LogChunk& chunk);
  // At most 64 KiB from `offset`; empty at the end and for a log that is not there.
  absl::StatusOr<std::string> Read(const std::string& job, int attempt, int rank,
                                   int64_t offset) const;
  void Remove(const std::string& job);
  // Names of the jobs that have logs.
  std::vector<std::string> Jobs() const;

 private:
  std::string PathOf(const std::string& job, int attempt, int rank) const;

  const std::string directory_;
  const int64_t limit_;
  std::mutex mutex_;
};

}  // namespace lemo::coordinator
