// How much a directory holds, for metrics.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <mutex>

namespace lemo::metrics {

// To walk a large directory takes seconds: it is done once a minute at most, and for at most a
// hundredth of the time. Thread-safe.
class DirectoryBytes {
 public:
  explicit DirectoryBytes(std::filesystem::path path);

  // Sizes of all regular files below, as of the last look; 0 when there is no such directory. Files
  // that come and go during a look may or may not count.
  int64_t Get();

 private:
  const std::filesystem::path path_;
  std::mutex mutex_;
  std::chrono::steady_clock::time_point due_{};
  int64_t bytes_ = 0;
};

}  // namespace lemo::metrics
