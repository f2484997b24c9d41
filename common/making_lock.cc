#include "common/making_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/files.h"

namespace lemo {
namespace {

constexpr auto kPause = std::chrono::milliseconds(5);

}  // namespace

bool LockBefore(int fd, int how, LockClock::time_point deadline) {
  while (::flock(fd, how | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) return false;
    if (LockClock::now() >= deadline) return false;
    std::this_thread::sleep_for(kPause);
  }
  return true;
}

bool IsThere(int fd) {
  struct stat info;
  return ::fstat(fd, &info) == 0 && info.st_nlink > 0;
}

absl::Status Late(const std::filesystem::path& path, std::string_view what) {
  return absl::DeadlineExceededError(
      absl::StrCat(path.string(), ": ", std::string(what), " for too long"));
}

absl::StatusOr<Descriptor> LockMaking(const std::filesystem::path& path,
                                      LockClock::time_point deadline) {
  for (;;) {
    Descriptor fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (fd.get() < 0) return ErrnoStatus(errno, "create", path);
    if (!LockBefore(fd.get(), LOCK_EX, deadline)) return Late(path, "another makes it");
    if (IsThere(fd.get())) return fd;
  }
}

}  // namespace lemo
