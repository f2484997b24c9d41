#include "coordinator/artifacts/local_upload.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "coordinator/artifacts/sha256.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;

class LocalUpload : public Upload {
 public:
  LocalUpload(UploadTarget target, int fd) : target_(std::move(target)), fd_(fd) {}
  ~LocalUpload() override { ::close(fd_); }

  int64_t offset() const override { return offset_; }

  // Takes in what an earlier writer left.
  absl::Status Resume() {
    std::vector<char> buffer(1 << 20);
    for (;;) {
      const ssize_t got = ::pread(fd_, buffer.data(), buffer.size(), offset_);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return DiskStatus(errno, "read", target_.part);
      if (got == 0) return absl::OkStatus();
      hash_.Add({buffer.data(), static_cast<size_t>(got)});
      offset_ += got;
    }
  }

  // Asked once, at the beginning: better than to fail after an hour.
  absl::Status CheckRoom() const {
    struct statvfs room;
    if (::fstatvfs(fd_, &room) != 0) return DiskStatus(errno, "look at", target_.part);
    const auto available = static_cast<uint64_t>(room.f_bavail) * room.f_frsize;
    const auto wanted = static_cast<uint64_t>(target_.bytes - offset_);
    if (wanted <= available) return absl::OkStatus();
    return absl::ResourceExhaustedError(
        absl::StrCat("no room in ", target_.part.parent_path().string(), ": ", wanted,
                     " bytes wanted, ", available, " free"));
  }

  absl::Status Write(int64_t offset, std::string_view data) override {
    LEMO_RETURN_IF_ERROR(CheckOpen());
    if (offset != offset_) {
      return absl::OutOfRangeError(
          absl::StrCat("the upload is at offset ", offset_, ", not ", offset));
    }
    if (static_cast<int64_t>(data.size()) > target_.bytes - offset_) {
      return absl::OutOfRangeError(absl::StrCat(data.size(), " bytes at offset ", offset_,
                                                " exceed the announced ", target_.bytes));
    }
    size_t done = 0;
    while (done < data.size()) {
      const ssize_t wrote = ::pwrite(fd_, data.data() + done, data.size() - done,
                                     offset_ + static_cast<int64_t>(done));
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote < 0) {
        const int error = errno;
        // All of the piece or nothing of it, so that its sender can send it again.
        if (::ftruncate(fd_, offset_) != 0) return DiskStatus(errno, "truncate", target_.part);
        return DiskStatus(error, absl::StrCat("write ", data.size(), " bytes to"), target_.part);
      }
      done += static_cast<size_t>(wrote);
    }
    hash_.Add(data);
    offset_ += static_cast<int64_t>(data.size());
    return absl::OkStatus();
  }

  absl::Status Finish() override {
    LEMO_RETURN_IF_ERROR(CheckOpen());
    if (offset_ != target_.bytes) {
      return absl::OutOfRangeError(
          absl::StrCat("the upload has ", offset_, " of ", target_.bytes, " bytes"));
    }
    const std::string sha256 = hash_.Finish();
    finished_ = true;
    if (sha256 != target_.sha256) {
      Drop();
      return absl::DataLossError(absl::StrCat("the content has SHA-256 ", sha256,
                                              ", announced was ", target_.sha256,
                                              "; send it again"));
    }
    return Publish();
  }

 private:
  absl::Status CheckOpen() const {
    if (!finished_) return absl::OkStatus();
    return absl::FailedPreconditionError("the upload is finished");
  }

  // The announcement goes first, while the lock on the part still keeps others from beginning anew
  // with one of their own.
  void Drop() {
    ::unlink(AnnouncementOf(target_.part).c_str());
    ::unlink(target_.part.c_str());
  }

  absl::Status Publish() {
    // What has a checksum for a name is never written again.
    if (::fchmod(fd_, 0444) != 0) return DiskStatus(errno, "protect", target_.part);
    if (::fsync(fd_) != 0) return DiskStatus(errno, "sync", target_.part);
    const fs::path folder = target_.content.parent_path();
    if (::mkdir(folder.c_str(), 0755) == 0) {
      LEMO_RETURN_IF_ERROR(SyncPath(folder.parent_path()));
    } else if (errno != EEXIST) {
      return DiskStatus(errno, "create", folder);
    }
    ::unlink(AnnouncementOf(target_.part).c_str());
    if (::rename(target_.part.c_str(), target_.content.c_str()) != 0) {
      return DiskStatus(errno, "rename to", target_.content);
    }
    return SyncPath(folder);
  }

  const UploadTarget target_;
  const int fd_;
  Sha256 hash_;  // of what is in the part
  int64_t offset_ = 0;
  bool finished_ = false;
};

// Opens and locks the part. A part that another writer published or dropped between the two has
// lost its name; then there is a new one to open.
absl::StatusOr<int> LockPart(const fs::path& part) {
  for (;;) {
    const int fd = ::open(part.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0) return DiskStatus(errno, "open", part);
    absl::Cleanup close = [fd] { ::close(fd); };
    if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) return DiskStatus(errno, "lock", part);
      return absl::AbortedError("the upload has another writer; try again when that one is gone");
    }
    struct stat mine, named;
    if (::fstat(fd, &mine) != 0) return DiskStatus(errno, "look at", part);
    if (::stat(part.c_str(), &named) != 0) {
      if (errno == ENOENT) continue;
      return DiskStatus(errno, "look at", part);
    }
    if (mine.st_dev != named.st_dev || mine.st_ino != named.st_ino) continue;
    std::move(close).Cancel();
    return fd;
  }
}

// What was announced when the upload began is what it stays.
absl::Status Announce(const UploadTarget& target, int fd) {
  const fs::path path = AnnouncementOf(target.part);
  const std::string announced = absl::StrCat(target.bytes, " ", target.sha256, "\n");
  const absl::StatusOr<std::string> before = ReadFile(path, 4096);
  if (before.ok()) {
    if (*before == announced) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("the upload began with size and SHA-256 ",
                                                   *before, "and goes on with ", announced));
  }
  if (!absl::IsNotFound(before.status())) return before.status();
  if (::ftruncate(fd, 0) != 0) return DiskStatus(errno, "truncate", target.part);
  const absl::Status written = WriteFileAtomic(path, announced);
  // Of the codes of WriteFileAtomic this one is a full disk.
  if (absl::IsFailedPrecondition(written)) {
    return absl::ResourceExhaustedError(written.message());
  }
  return written;
}

}  // namespace

bool RemoveUpload(const fs::path& part) {
  const int fd = ::open(part.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) return false;
  const absl::Cleanup close = [fd] { ::close(fd); };
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) return false;
  // In this order for the reason that Drop has.
  ::unlink(AnnouncementOf(part).c_str());
  return ::unlink(part.c_str()) == 0;
}

fs::path AnnouncementOf(const fs::path& part) { return part.string() + ".upload"; }

absl::Status DiskStatus(int error, const std::string& action, const fs::path& path) {
  absl::Status status = ErrnoStatus(error, action, path);
  if (!absl::IsFailedPrecondition(status)) return status;
  return absl::ResourceExhaustedError(status.message());
}

absl::StatusOr<std::unique_ptr<Upload>> OpenLocalUpload(const UploadTarget& target) {
  LEMO_ASSIGN_OR_RETURN(const int fd, LockPart(target.part));
  auto upload = std::make_unique<LocalUpload>(target, fd);
  LEMO_RETURN_IF_ERROR(Announce(target, fd));
  LEMO_RETURN_IF_ERROR(upload->Resume());
  LEMO_RETURN_IF_ERROR(upload->CheckRoom());
  return upload;
}

}  // namespace lemo::coordinator
