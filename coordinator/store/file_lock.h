// Exclusive ownership of a path among processes, for as long as the object lives; the kernel takes
// the lock back when its holder dies.
#pragma once

#include <string>
#include <utility>

#include "absl/status/statusor.h"

namespace lemo::coordinator {

class FileLock {
 public:
  // Locks `path`, which is created and never removed. FAILED_PRECONDITION, with the holder's
  // process id, when it is locked already, by this process or another.
  static absl::StatusOr<FileLock> Acquire(const std::string& path);

  FileLock(FileLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileLock& operator=(FileLock&&) = delete;
  ~FileLock();

 private:
  explicit FileLock(int fd) : fd_(fd) {}
  int fd_;
};

}  // namespace lemo::coordinator
