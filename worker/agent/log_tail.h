// A log file that another process writes, as far as it was sent.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "lemo/v1/job_service.pb.h"

namespace lemo::agent {

// Not thread-safe.
class LogTail {
 public:
  // More of a log than this is not sent: a rank in a loop must not fill the coordinator's disk.
  static constexpr int64_t kSentMax = int64_t{64} << 20;

  LogTail(std::filesystem::path path, int rank, int attempt)
      : path_(std::move(path)), rank_(rank), attempt_(attempt) {}

  // What was written since the last chunk, 32 KiB at most; without data when there is nothing.
  // Taken once: it counts as sent.
  lemo::v1::LogChunk Next();

 private:
  std::filesystem::path path_;
  int rank_;
  int attempt_;
  int64_t offset_ = 0;
};

// The last `bytes` of a file, from the beginning of a line if one begins there; empty when it
// cannot be read. Not UTF-8 bytes are replaced, so that a message can carry it.
std::string LastBytes(const std::filesystem::path& path, int64_t bytes);

}  // namespace lemo::agent
