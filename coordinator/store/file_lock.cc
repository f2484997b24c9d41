#include "coordinator/store/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"

namespace lemo::coordinator {

absl::StatusOr<FileLock> FileLock::Acquire(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoStatus(errno, "open", path);
  FileLock lock(fd);
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoStatus(errno, "lock", path);
    char holder[32] = {};
    const ssize_t got = ::pread(fd, holder, sizeof holder - 1, 0);
    std::string who = got > 0 ? std::string(absl::StripAsciiWhitespace(holder)) : "";
    return absl::FailedPreconditionError(absl::StrCat(path, " is locked by process ",
                                                      who.empty() ? "(unknown)" : who,
                                                      "; only one coordinator may use it"));
  }
  // Only for the message above; the lock itself does not need it, so a full disk is no matter.
  const std::string self = absl::StrCat(::getpid(), "\n");
  if (::ftruncate(fd, 0) == 0 && ::pwrite(fd, self.data(), self.size(), 0) < 0) errno = 0;
  return lock;
}

FileLock::~FileLock() {
  if (fd_ >= 0) ::close(fd_);
}

}  // namespace lemo::coordinator
