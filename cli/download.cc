#include "cli/download.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "cli/errors.h"
#include "cli/format.h"
#include "cli/progress.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace lemo::cli {
namespace {

namespace fs = std::filesystem;

// Attempts in a row that brought no byte across.
constexpr int kMaxFruitless = 5;

absl::Status WriteAll(int fd, std::string_view data, const fs::path& path) {
  while (!data.empty()) {
    const ssize_t wrote = ::write(fd, data.data(), data.size());
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return ErrnoStatus(errno, "write", path);
    data.remove_prefix(static_cast<size_t>(wrote));
  }
  return absl::OkStatus();
}

class Fetcher {
 public:
  Fetcher(const Connection& connection, const Download& download, fs::path part, std::ostream& err)
      : connection_(connection),
        download_(download),
        part_(std::move(part)),
        what_(absl::StrCat("fetch ", Printable(download.name))),
        progress_(err, what_, download.bytes) {}

  // `part_` then has all bytes, not yet checked.
  absl::Status Run() {
    const int fd = ::open(part_.c_str(), O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0) return ErrnoStatus(errno, "create", part_);
    absl::Cleanup close = [fd] { ::close(fd); };
    struct stat info;
    if (::fstat(fd, &info) != 0) return ErrnoStatus(errno, "stat", part_);
    offset_ = info.st_size;
    if (offset_ > download_.bytes) {
      if (::ftruncate(fd, 0) != 0) return ErrnoStatus(errno, "truncate", part_);
      offset_ = 0;
    }
    if (::lseek(fd, offset_, SEEK_SET) < 0) return ErrnoStatus(errno, "seek in", part_);
    Backoff backoff;
    for (int fruitless = 0; offset_ < download_.bytes; ++fruitless) {
      const int64_t before = offset_;
      grpc::Status status;
      LEMO_RETURN_IF_ERROR(Receive(fd, &status));
      if (offset_ == download_.bytes) break;
      if (status.ok()) {
        return absl::DataLossError(absl::StrCat("cannot ", what_, ": the service sent ", offset_,
                                                " of ", download_.bytes, " bytes and ended"));
      }
      if (offset_ > before) {
        fruitless = 0;
        backoff.Reset();
      }
      if (!IsTransient(status.error_code()) || fruitless + 1 >= kMaxFruitless) {
        return RpcError(what_, connection_.address(), status);
      }
      connection_.Pause(backoff.Next());
    }
    if (::fsync(fd) != 0) return ErrnoStatus(errno, "sync", part_);
    return absl::OkStatus();
  }

 private:
  // One stream, until it ends in `*status` or the bytes are complete.
  absl::Status Receive(int fd, grpc::Status* status) {
    Stream<lemo::v1::DataChunk> stream(
        [&](grpc::ClientContext* context, grpc::CompletionQueue* queue) {
          return download_.open(offset_, context, queue);
        });
    lemo::v1::DataChunk chunk;
    while (offset_ < download_.bytes) {
      switch (stream.Next(connection_.timeout(), &chunk)) {
        case StreamEvent::kEnd:
          *status = stream.status();
          return absl::OkStatus();
        case StreamEvent::kInterrupted:
          return absl::CancelledError(absl::StrCat("stopped; what came over stays in ",
                                                   part_.string(), " and is used next time"));
        case StreamEvent::kTimeout:
          *status = grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED, "nothing came any more");
          return absl::OkStatus();
        case StreamEvent::kMessage:
          break;
      }
      const std::string& data = chunk.data();
      if (data.empty()) continue;
      if (chunk.offset() != offset_ ||
          static_cast<int64_t>(data.size()) > download_.bytes - offset_) {
        return absl::DataLossError(
            absl::StrCat("cannot ", what_, ": got ", data.size(), " bytes at ", chunk.offset(),
                         " instead of the next of ", download_.bytes, " at ", offset_));
      }
      LEMO_RETURN_IF_ERROR(WriteAll(fd, data, part_));
      offset_ += static_cast<int64_t>(data.size());
      progress_.Update(offset_);
    }
    return absl::OkStatus();
  }

  const Connection& connection_;
  const Download& download_;
  const fs::path part_;
  const std::string what_;
  ProgressLine progress_;
  int64_t offset_ = 0;
};

bool IsHexSha256(const std::string& text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == text.npos;
}

}  // namespace

absl::StatusOr<fs::path> PathBelow(const fs::path& directory, const std::string& path) {
  auto refuse = [&](std::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat("refused the path \"", Printable(path),
                                                   "\" that the service gave: ", std::string(why)));
  };
  if (path.find('\\') != path.npos || path.find('\0') != path.npos ||
      path.find('\n') != path.npos || Printable(path) != path) {
    return refuse("it has characters that file names should not have");
  }
  fs::path full = directory;
  for (absl::string_view view : absl::StrSplit(path, '/')) {
    const std::string name(view);
    if (name.empty() || name == "." || name == "..") return refuse("it would lead elsewhere");
    full /= name;
    std::error_code error;
    if (fs::is_symlink(fs::symlink_status(full, error))) {
      return refuse(absl::StrCat(full.string(), " is a symbolic link"));
    }
  }
  return full;
}

absl::Status Fetch(const Connection& connection, const Download& download,
                   const DownloadOptions& options, std::ostream& err) {
  if (!IsHexSha256(download.sha256) || download.bytes < 0) {
    return absl::DataLossError(absl::StrCat("cannot fetch ", Printable(download.name),
                                            ": the service tells no SHA-256 of it"));
  }
  const fs::path& target = options.target;
  const fs::path directory = target.has_parent_path() ? target.parent_path() : fs::path(".");
  LEMO_RETURN_IF_ERROR(MakeDirectories(directory));
  std::error_code error;
  if (fs::exists(fs::symlink_status(target, error))) {
    if (fs::is_regular_file(fs::symlink_status(target, error))) {
      const absl::StatusOr<std::string> sha256 = Sha256HexOfFile(target);
      if (sha256.ok() && *sha256 == download.sha256) return absl::OkStatus();
    }
    if (!options.replace) {
      return absl::AlreadyExistsError(
          absl::StrCat(target.string(),
                       " exists and holds something else; name another place "
                       "with --out, or --replace it"));
    }
  }
  // The name says of which contents it is a part.
  const fs::path part = directory / absl::StrCat(".", target.filename().string(), ".",
                                                 download.sha256.substr(0, 16), ".part");
  LEMO_RETURN_IF_ERROR(Fetcher(connection, download, part, err).Run());
  LEMO_ASSIGN_OR_RETURN(const std::string sha256, Sha256HexOfFile(part));
  if (sha256 != download.sha256) {
    ::unlink(part.c_str());
    return absl::DataLossError(absl::StrCat("cannot fetch ", Printable(download.name),
                                            ": its SHA-256 is ", sha256, ", the service announced ",
                                            download.sha256, "; nothing was kept"));
  }
  if (::rename(part.c_str(), target.c_str()) != 0) {
    return ErrnoStatus(errno, "rename to", target);
  }
  return SyncPath(directory);
}

}  // namespace lemo::cli
