#include "common/shared_files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/making_lock.h"
#include "common/status_macros.h"

namespace lemo {
namespace {

namespace fs = std::filesystem;
using Clock = LockClock;

constexpr std::string_view kWhole = ".shared", kNew = ".new", kLock = ".lock";

// Of the boot that runs now, as names end; "-" where the system does not say.
std::string BootSuffix() {
  const absl::StatusOr<std::string> id = ReadFile("/proc/sys/kernel/random/boot_id", 1024);
  return absl::StrCat("-", id.ok() ? Sha256Hex(*id).substr(0, 8) : "");
}

fs::path PathOf(const fs::path& directory, const std::string& stem, std::string_view suffix) {
  return directory / absl::StrCat(stem, std::string(suffix));
}

using Shared = std::shared_ptr<const SharedFile>;

absl::StatusOr<Shared> Map(Descriptor fd, const fs::path& path, int64_t bytes) {
  struct stat info;
  if (::fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, "stat", path);
  if (info.st_size != bytes) {
    return absl::InternalError(absl::StrCat(path.string(), ": expected ", bytes, " bytes, found ",
                                            static_cast<int64_t>(info.st_size)));
  }
  void* data =
      ::mmap(nullptr, static_cast<size_t>(bytes), PROT_READ, MAP_SHARED, fd.get(), /*offset=*/0);
  if (data == MAP_FAILED) return ErrnoStatus(errno, "map", path);
  // By this the one that was not taken for longest is known. A file system without such times
  // only makes the order of removal another.
  ::futimens(fd.get(), nullptr);
  return std::make_shared<const SharedFile>(data, bytes, fd.Release());
}

// The whole file, locked; null when there is none.
absl::StatusOr<Shared> MapWhole(const fs::path& path, int64_t bytes, Clock::time_point deadline) {
  for (;;) {
    Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (fd.get() < 0) {
      if (errno == ENOENT) return Shared();
      return ErrnoStatus(errno, "open", path);
    }
    // Only who is about to remove it is in the way.
    if (!LockBefore(fd.get(), LOCK_SH, deadline)) return Late(path, "was locked by another");
    if (IsThere(fd.get())) return Map(std::move(fd), path, bytes);
  }
}

absl::Status Make(const fs::path& whole, const fs::path& beside, int64_t bytes,
                  const std::function<absl::Status(char*)>& fill) {
  ::unlink(beside.c_str());  // of one who died
  const Descriptor fd(::open(beside.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (fd.get() < 0) return ErrnoStatus(errno, "create", beside);
  absl::Cleanup discard = [&beside] { ::unlink(beside.c_str()); };
  // Room for all of it, now: a page of a mapping that the disk has none for would end the process.
  if (const int error = ::posix_fallocate(fd.get(), 0, bytes); error != 0) {
    return ErrnoStatus(error, absl::StrCat("reserve ", bytes, " bytes for"), beside);
  }
  void* data = ::mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED,
                      fd.get(), /*offset=*/0);
  if (data == MAP_FAILED) return ErrnoStatus(errno, "map", beside);
  {
    const absl::Cleanup unmap = [&] { ::munmap(data, static_cast<size_t>(bytes)); };
    LEMO_RETURN_IF_ERROR(fill(static_cast<char*>(data)));
  }
  if (::rename(beside.c_str(), whole.c_str()) != 0) return ErrnoStatus(errno, "rename to", whole);
  std::move(discard).Cancel();
  return absl::OkStatus();
}

// The name without `suffix`, or nothing when it has another one.
std::optional<std::string> StemOf(const std::string& name, std::string_view suffix) {
  if (name.size() <= suffix.size() || !std::string_view(name).ends_with(suffix)) {
    return std::nullopt;
  }
  return name.substr(0, name.size() - suffix.size());
}

// Locked so that nobody else has it; nothing when somebody has, or when it is gone.
std::optional<Descriptor> TakeAlone(const fs::path& path) {
  Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0 || ::flock(fd.get(), LOCK_EX | LOCK_NB) != 0 || !IsThere(fd.get())) {
    return std::nullopt;
  }
  return fd;
}

}  // namespace

SharedFile::~SharedFile() {
  ::munmap(data_, static_cast<size_t>(bytes_));
  ::close(fd_);
}

absl::StatusOr<Shared> MapSharedFile(const fs::path& directory, const std::string& name,
                                     int64_t bytes,
                                     const std::function<absl::Status(char* data)>& fill,
                                     std::chrono::milliseconds patience) {
  const Clock::time_point deadline = Clock::now() + patience;
  LEMO_RETURN_IF_ERROR(MakeDirectories(directory));
  const std::string stem = absl::StrCat(name, BootSuffix());
  const fs::path whole = PathOf(directory, stem, kWhole);
  for (;;) {
    LEMO_ASSIGN_OR_RETURN(Shared there, MapWhole(whole, bytes, deadline));
    if (there != nullptr) return there;
    LEMO_ASSIGN_OR_RETURN(const Descriptor making,
                          LockMaking(PathOf(directory, stem, kLock), deadline));
    LEMO_ASSIGN_OR_RETURN(there, MapWhole(whole, bytes, deadline));  // who was before made it
    if (there != nullptr) return there;
    LEMO_RETURN_IF_ERROR(Make(whole, PathOf(directory, stem, kNew), bytes, fill));
    // Mapped under the lock: nobody takes it for unused in between. Should it be gone nevertheless,
    // it is made again.
    LEMO_ASSIGN_OR_RETURN(there, MapWhole(whole, bytes, deadline));
    if (there != nullptr) return there;
  }
}

int64_t RemoveUnusedSharedFiles(const fs::path& directory, int64_t keep_bytes) {
  struct Unused {
    bool of_this_boot;
    int64_t seconds, nanoseconds;  // when it was last taken
    int64_t bytes;
    fs::path path;
    Descriptor lock;
  };
  const std::string boot = BootSuffix();
  std::vector<Unused> unused;
  std::vector<std::string> makings;
  int64_t left = 0, idle = 0;
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (const auto stem = StemOf(name, kLock)) makings.push_back(*stem);
    const auto stem = StemOf(name, kWhole);
    struct stat info;
    if (!stem || ::stat(entry->path().c_str(), &info) != 0) continue;
    const auto bytes = static_cast<int64_t>(info.st_size);
    left += bytes;
    // Its maker has yet to map it.
    if (::access(PathOf(directory, *stem, kLock).c_str(), F_OK) == 0 &&
        !TakeAlone(PathOf(directory, *stem, kLock))) {
      continue;
    }
    std::optional<Descriptor> lock = TakeAlone(entry->path());
    if (!lock) continue;
    idle += bytes;
    unused.push_back({absl::EndsWith(*stem, boot), info.st_mtim.tv_sec, info.st_mtim.tv_nsec, bytes,
                      entry->path(), *std::move(lock)});
  }
  std::sort(unused.begin(), unused.end(), [](const Unused& a, const Unused& b) {
    return std::tie(a.of_this_boot, a.seconds, a.nanoseconds) <
           std::tie(b.of_this_boot, b.seconds, b.nanoseconds);
  });
  for (const Unused& one : unused) {
    if (one.of_this_boot && idle <= keep_bytes) break;
    // Under the lock: who has opened it meanwhile finds that it is no more, and makes it anew.
    if (::unlink(one.path.c_str()) != 0) continue;
    idle -= one.bytes;
    left -= one.bytes;
  }
  for (const std::string& stem : makings) {
    const std::optional<Descriptor> lock = TakeAlone(PathOf(directory, stem, kLock));
    if (!lock) continue;
    ::unlink(PathOf(directory, stem, kNew).c_str());
    ::unlink(PathOf(directory, stem, kLock).c_str());
  }
  return left;
}

}  // namespace lemo
