// Who may make what processes of one machine share: a file that one of them locks (flock) while it
// looks for the thing and, where it is not there, makes it. One who dies holds no lock.
#pragma once

#include <chrono>
#include <filesystem>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/descriptor.h"

namespace lemo {

using LockClock = std::chrono::steady_clock;

// Locks the open file as `how` (LOCK_SH or LOCK_EX) says. False when another holds it until the
// deadline.
bool LockBefore(int fd, int how, LockClock::time_point deadline);

// Whether the open file still has its name: who waited for a lock may have got that of a file that
// is no more.
bool IsThere(int fd);

absl::Status Late(const std::filesystem::path& path, std::string_view what);

// The file of that path, made if need be and locked. DeadlineExceeded where another has it.
absl::StatusOr<Descriptor> LockMaking(const std::filesystem::path& path,
                                      LockClock::time_point deadline);

}  // namespace lemo
