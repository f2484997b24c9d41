#include "worker/train/state/atomic_directory.h"

#include <fcntl.h>
#include <stdio.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;

fs::path WithoutTrailingSlash(const fs::path& path) {
  return path.has_filename() ? path : path.parent_path();
}

fs::path Parent(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

fs::path Beside(const fs::path& target, const char* suffix) {
  const fs::path path = WithoutTrailingSlash(target);
  return path.parent_path() / absl::StrCat(".", path.filename().string(), suffix);
}

bool Exists(const fs::path& path) {
  std::error_code error;
  return fs::symlink_status(path, error).type() != fs::file_type::not_found;
}

absl::Status RemoveTree(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) return ErrnoStatus(error.value(), "remove", path);
  return absl::OkStatus();
}

absl::Status Rename(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) {
    return ErrnoStatus(errno, absl::StrCat("rename ", from.string(), " to"), to);
  }
  return absl::OkStatus();
}

}  // namespace

fs::path AtomicDirectory::TemporaryPath(const fs::path& target) { return Beside(target, ".tmp"); }

fs::path AtomicDirectory::FormerPath(const fs::path& target) { return Beside(target, ".old"); }

AtomicDirectory::AtomicDirectory(fs::path target)
    : target_(std::move(target)), temporary_(TemporaryPath(target_)) {}

AtomicDirectory::AtomicDirectory(AtomicDirectory&& other) noexcept
    : target_(std::move(other.target_)), temporary_(std::exchange(other.temporary_, fs::path())) {}

AtomicDirectory::~AtomicDirectory() {
  // A leftover does no harm and is removed by the next Begin, so an error here needs no report.
  if (!temporary_.empty()) RemoveTree(temporary_).IgnoreError();
}

absl::Status AtomicDirectory::Recover(const fs::path& target) {
  const fs::path former = FormerPath(target);
  if (!Exists(former)) return absl::OkStatus();
  if (Exists(target)) return RemoveTree(former);
  LEMO_RETURN_IF_ERROR(Rename(former, target));
  return SyncPath(Parent(target));
}

absl::StatusOr<AtomicDirectory> AtomicDirectory::Begin(const fs::path& target_path) {
  const fs::path target = WithoutTrailingSlash(target_path);
  LEMO_RETURN_IF_ERROR(MakeDirectories(Parent(target)));
  LEMO_RETURN_IF_ERROR(Recover(target));
  std::error_code error;
  if (Exists(target) && !fs::is_directory(target, error)) {
    return absl::FailedPreconditionError(absl::StrCat(
        target.string(), " exists and is not a directory; remove it or choose another"));
  }
  LEMO_RETURN_IF_ERROR(RemoveTree(TemporaryPath(target)));
  AtomicDirectory directory(target);
  LEMO_RETURN_IF_ERROR(MakeDirectories(directory.path()));
  return directory;
}

absl::Status AtomicDirectory::Remove(const fs::path& target_path) {
  const fs::path target = WithoutTrailingSlash(target_path);
  if (!Exists(target)) return absl::OkStatus();
  const fs::path temporary = TemporaryPath(target);
  LEMO_RETURN_IF_ERROR(RemoveTree(temporary));
  LEMO_RETURN_IF_ERROR(Rename(target, temporary));
  // Without this a power cut could bring the name back with half of its files.
  LEMO_RETURN_IF_ERROR(SyncPath(Parent(target)));
  return RemoveTree(temporary);
}

absl::Status AtomicDirectory::Commit(Replace replace) {
  LEMO_RETURN_IF_ERROR(SyncPath(temporary_));
  if (!Exists(target_)) {
    LEMO_RETURN_IF_ERROR(Rename(temporary_, target_));
    temporary_.clear();
    return SyncPath(Parent(target_));
  }
  if (replace == Replace::kExchange) {
    if (::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE) ==
        0) {
      // The destructor removes what is now the former one, after the exchange is on the disk.
      return SyncPath(Parent(target_));
    }
    if (errno != EINVAL && errno != ENOSYS && errno != EXDEV && errno != EOPNOTSUPP) {
      return ErrnoStatus(errno, absl::StrCat("exchange ", temporary_.string(), " with"), target_);
    }
  }
  const fs::path former = FormerPath(target_);
  LEMO_RETURN_IF_ERROR(Rename(target_, former));
  if (absl::Status status = Rename(temporary_, target_); !status.ok()) {
    LEMO_RETURN_IF_ERROR(Rename(former, target_));
    return status;
  }
  temporary_.clear();
  LEMO_RETURN_IF_ERROR(SyncPath(Parent(target_)));
  return RemoveTree(former);
}

}  // namespace lemo::train
