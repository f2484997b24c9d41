#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "coordinator/artifacts/artifacts.h"
#include "coordinator/artifacts/local_upload.h"
#include "coordinator/artifacts/sha256.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;

constexpr size_t kPieceBytes = size_t{1} << 20;

// An upload that nobody went on with for so long is given up.
constexpr absl::Duration kUploadAgeMax = absl::Hours(24);

// InfiniteFuture when there is no such file.
absl::Time TimeOf(const fs::path& path) {
  struct stat info;
  if (::lstat(path.c_str(), &info) != 0) return absl::InfiniteFuture();
  return absl::TimeFromTimespec(info.st_mtim);
}

absl::Status ErrorStatus(const std::error_code& error, const std::string& action,
                         const fs::path& path) {
  return error ? DiskStatus(error.value(), action, path) : absl::OkStatus();
}

// All names are checksums that were checked for being one, so no name leads out of the directory.
class LocalArtifactStore : public ArtifactStore {
 public:
  explicit LocalArtifactStore(fs::path root) : root_(std::move(root)) {}

  absl::StatusOr<std::unique_ptr<Upload>> BeginUpload(const std::string& id, int64_t bytes,
                                                      const std::string& sha256) override {
    UploadTarget target;
    target.part = PartOf(id);
    target.bytes = bytes;
    target.sha256 = NormalizedSha256(sha256);
    if (bytes < 0) return absl::InvalidArgumentError(absl::StrCat("a size of ", bytes, " bytes"));
    if (target.sha256.empty()) {
      return absl::InvalidArgumentError("sha256: expected 64 hexadecimal digits");
    }
    target.content = ContentOf(target.sha256);
    return OpenLocalUpload(target);
  }

  absl::StatusOr<int64_t> ReceivedBytes(const std::string& id) override {
    struct stat info;
    if (::stat(PartOf(id).c_str(), &info) == 0) return info.st_size;
    if (errno == ENOENT) return 0;
    return DiskStatus(errno, "look at", PartOf(id));
  }

  bool Has(const std::string& sha256) const override {
    const std::string name = NormalizedSha256(sha256);
    std::error_code error;
    // A link is nothing of ours, wherever it leads.
    return !name.empty() && fs::is_regular_file(fs::symlink_status(ContentOf(name), error));
  }

  absl::Status Read(
      const std::string& sha256, int64_t offset,
      const std::function<bool(int64_t offset, std::string_view data)>& consume) override {
    LEMO_ASSIGN_OR_RETURN(const fs::path path, Find(sha256));
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return DiskStatus(errno, "open", path);
    absl::Cleanup close = [fd] { ::close(fd); };
    struct stat info;
    if (::fstat(fd, &info) != 0) return DiskStatus(errno, "look at", path);
    if (offset < 0 || offset > info.st_size) {
      return absl::OutOfRangeError(
          absl::StrCat("offset ", offset, " of content of ", info.st_size, " bytes"));
    }
    Sha256 hash;
    std::vector<char> buffer(kPieceBytes);
    int64_t at = offset;
    for (;;) {
      const int64_t wanted =
          std::min<int64_t>(info.st_size - at, static_cast<int64_t>(kPieceBytes));
      LEMO_RETURN_IF_ERROR(ReadPiece(fd, path, at, wanted, buffer.data()));
      const std::string_view piece(buffer.data(), static_cast<size_t>(wanted));
      const bool last = at + wanted == info.st_size;
      if (offset == 0) {
        hash.Add(piece);
        // Before the last piece is given, so that nobody takes damaged content for complete.
        if (last) LEMO_RETURN_IF_ERROR(CheckHash(hash.Finish(), path));
      }
      if (!piece.empty() && !consume(at, piece)) return absl::OkStatus();
      if (last) return absl::OkStatus();
      at += wanted;
    }
  }

  absl::StatusOr<std::string> LocalPath(const std::string& sha256) override {
    LEMO_ASSIGN_OR_RETURN(const fs::path path, Find(sha256));
    return path.string();
  }

  absl::Status Remove(const std::string& sha256) override {
    LEMO_ASSIGN_OR_RETURN(const fs::path path, Find(sha256));
    if (::unlink(path.c_str()) != 0) return DiskStatus(errno, "remove", path);
    return absl::OkStatus();
  }

  absl::StatusOr<int64_t> Size(const std::string& sha256) const override {
    LEMO_ASSIGN_OR_RETURN(const fs::path path, Find(sha256));
    struct stat info;
    if (::stat(path.c_str(), &info) != 0) return DiskStatus(errno, "look at", path);
    return info.st_size;
  }

  bool Refresh(const std::string& sha256) override {
    return Has(sha256) && ::utimensat(AT_FDCWD, ContentOf(NormalizedSha256(sha256)).c_str(),
                                      nullptr, AT_SYMLINK_NOFOLLOW) == 0;
  }

  absl::Status VisitOld(
      absl::Time before,
      const std::function<absl::Status(const std::string& sha256)>& visit) override {
    std::error_code error;
    fs::recursive_directory_iterator entry(root_ / "sha256", error), end;
    for (; !error && entry != end; entry.increment(error)) {
      const std::string sha256 = entry->path().filename().string();
      if (NormalizedSha256(sha256) != sha256 || TimeOf(entry->path()) >= before) continue;
      LEMO_RETURN_IF_ERROR(visit(sha256));
    }
    return ErrorStatus(error, "read", root_ / "sha256");
  }

  bool RemoveIfOld(const std::string& sha256, absl::Time before) override {
    return Has(sha256) && TimeOf(ContentOf(NormalizedSha256(sha256))) < before &&
           Remove(sha256).ok();
  }

  absl::StatusOr<int64_t> RemoveOldUploads(absl::Time before) override {
    int64_t removed = 0;
    std::error_code error;
    fs::directory_iterator entry(root_ / "incoming", error), end;
    for (; !error && entry != end; entry.increment(error)) {
      const fs::path& path = entry->path();
      if (!absl::EndsWith(path.string(), ".upload")) {
        if (TimeOf(path) < before && RemoveUpload(path)) ++removed;
        continue;
      }
      // Without its part, which is there first, an announcement is of no use.
      const fs::path part = path.string().substr(0, path.string().size() - 7);
      if (TimeOf(part) == absl::InfiniteFuture() && TimeOf(path) < before) ::unlink(path.c_str());
    }
    LEMO_RETURN_IF_ERROR(ErrorStatus(error, "read", root_ / "incoming"));
    return removed;
  }

  // Makes the directories, and clears up after uploads that were given up.
  absl::Status Prepare() {
    LEMO_RETURN_IF_ERROR(MakeDirectories(root_ / "incoming"));
    LEMO_RETURN_IF_ERROR(MakeDirectories(root_ / "sha256"));
    LEMO_RETURN_IF_ERROR(SyncPath(root_));
    return RemoveOldUploads(absl::Now() - kUploadAgeMax).status();
  }

 private:
  fs::path PartOf(const std::string& id) const {
    return root_ / "incoming" / absl::StrCat(Sha256Hex(id), ".part");
  }

  fs::path ContentOf(const std::string& sha256) const {
    return root_ / "sha256" / sha256.substr(0, 2) / sha256;
  }

  absl::StatusOr<fs::path> Find(const std::string& sha256) const {
    if (!Has(sha256)) {
      return absl::NotFoundError(absl::StrCat("no content with SHA-256 ", sha256));
    }
    return ContentOf(NormalizedSha256(sha256));
  }

  static absl::Status ReadPiece(int fd, const fs::path& path, int64_t at, int64_t bytes,
                                char* out) {
    for (int64_t done = 0; done < bytes;) {
      const ssize_t got = ::pread(fd, out + done, static_cast<size_t>(bytes - done), at + done);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0 && errno == EIO) {
        return absl::DataLossError(absl::StrCat("cannot read ", path.string(), " at ", at + done));
      }
      if (got < 0) return DiskStatus(errno, "read", path);
      if (got == 0) {
        return absl::DataLossError(absl::StrCat(path.string(), " became shorter while read"));
      }
      done += got;
    }
    return absl::OkStatus();
  }

  static absl::Status CheckHash(const std::string& found, const fs::path& path) {
    if (found == path.filename().string()) return absl::OkStatus();
    return absl::DataLossError(
        absl::StrCat(path.string(), " is damaged: its SHA-256 is now ", found));
  }

  const fs::path root_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ArtifactStore>> OpenLocalArtifactStore(
    const std::string& directory) {
  auto store = std::make_unique<LocalArtifactStore>(directory);
  LEMO_RETURN_IF_ERROR(store->Prepare());
  return store;
}

}  // namespace lemo::coordinator
