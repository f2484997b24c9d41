#include "worker/agent/file_cache.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace lemo::agent {
namespace {

namespace fs = std::filesystem;

bool IsSha256(const std::string& text) {
  return text.size() == 64 && std::all_of(text.begin(), text.end(), [](char c) {
           return absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f');
         });
}

absl::Status WriteAt(int fd, const fs::path& path, const std::string& data, int64_t offset) {
  for (size_t done = 0; done < data.size();) {
    const ssize_t wrote =
        ::pwrite(fd, data.data() + done, data.size() - done, offset + static_cast<int64_t>(done));
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return ErrnoStatus(errno, "write", path);
    done += static_cast<size_t>(wrote);
  }
  return absl::OkStatus();
}

int64_t SizeOf(const fs::path& path) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  return error ? 0 : static_cast<int64_t>(size);
}

}  // namespace

FileCache::FileCache(fs::path directory, std::shared_ptr<grpc::Channel> channel)
    : directory_(std::move(directory)), stub_(lemo::v1::FileService::NewStub(std::move(channel))) {}

absl::StatusOr<fs::path> FileCache::Fetch(const lemo::v1::InputFile& file, Canceller* canceller) {
  if (!IsSha256(file.sha256()) || file.bytes() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("files: ", file.name(), " has no proper checksum and size"));
  }
  const fs::path path = directory_ / file.sha256();
  bool check_first = false;
  for (;;) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (busy_.insert(file.sha256()).second) {
      check_first = !checked_.contains(file.sha256());
      break;
    }
    lock.unlock();
    if (!canceller->Sleep(std::chrono::milliseconds(50))) {
      return absl::CancelledError("the attempt was ended");
    }
  }
  absl::Cleanup release = [&] {
    std::lock_guard<std::mutex> lock(mutex_);
    busy_.erase(file.sha256());
  };
  std::error_code error;
  bool here = fs::is_regular_file(path, error) && SizeOf(path) == file.bytes();
  // A disk may have lost what was written before this agent's life.
  if (here && check_first) here = Sha256HexOfFile(path).value_or("") == file.sha256();
  if (!here) LEMO_RETURN_IF_ERROR(FetchAlone(file, path, canceller));
  fs::last_write_time(path, fs::file_time_type::clock::now(), error);
  std::lock_guard<std::mutex> lock(mutex_);
  checked_.insert(file.sha256());
  return path;
}

absl::Status FileCache::FetchAlone(const lemo::v1::InputFile& file, const fs::path& path,
                                   Canceller* canceller) {
  const fs::path part = path.string() + ".part";
  Retry retry(canceller);
  bool anew = false;
  for (;;) {
    if (canceller->cancelled()) return absl::CancelledError("the attempt was ended");
    const int64_t before = SizeOf(part);
    absl::Status local;
    const grpc::Status status = Download(file, part, canceller, &local);
    if (!local.ok()) return local;
    if (canceller->cancelled()) return absl::CancelledError("the attempt was ended");
    if (status.ok()) {
      LEMO_ASSIGN_OR_RETURN(const std::string sha256, Sha256HexOfFile(part));
      if (sha256 == file.sha256() && SizeOf(part) == file.bytes()) break;
      const int64_t size = SizeOf(part);
      ::unlink(part.c_str());
      // What was there from an earlier life may have been the fault; what came whole may not.
      if (before == 0 || anew) {
        return absl::DataLossError(absl::StrCat("cannot fetch ", file.name(), ": got ", size,
                                                " bytes with SHA-256 ", sha256, ", expected ",
                                                file.bytes(), " with ", file.sha256()));
      }
      anew = true;
      continue;
    }
    if (status.error_code() == grpc::StatusCode::OUT_OF_RANGE && before > 0) {
      ::unlink(part.c_str());
      continue;
    }
    if (!IsTransient(status) || !retry.Again(SizeOf(part) > before)) {
      if (canceller->cancelled()) return absl::CancelledError("the attempt was ended");
      return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                          absl::StrCat("cannot fetch ", file.name(), ": ", status.error_message()));
    }
  }
  LEMO_RETURN_IF_ERROR(SyncPath(part));
  if (::rename(part.c_str(), path.c_str()) != 0) return ErrnoStatus(errno, "rename to", path);
  return SyncPath(directory_);
}

grpc::Status FileCache::Download(const lemo::v1::InputFile& file, const fs::path& part,
                                 Canceller* canceller, absl::Status* local) {
  const int fd = ::open(part.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) {
    *local = ErrnoStatus(errno, "create", part);
    return grpc::Status::OK;
  }
  absl::Cleanup close = [fd] { ::close(fd); };
  int64_t offset = SizeOf(part);
  if (offset == file.bytes() && offset > 0) return grpc::Status::OK;
  if (offset > file.bytes()) {
    offset = 0;
    if (::ftruncate(fd, 0) != 0) *local = ErrnoStatus(errno, "cut", part);
    if (!local->ok()) return grpc::Status::OK;
  }
  CancellableContext context(canceller, TransferTimeout(file.bytes() - offset));
  lemo::v1::DownloadFileRequest request;
  request.set_name(file.name());
  request.set_offset(offset);
  const auto reader = stub_->DownloadFile(context.get(), request);
  for (lemo::v1::DataChunk chunk; reader->Read(&chunk);) {
    const int64_t size = static_cast<int64_t>(chunk.data().size());
    if (chunk.offset() != offset || offset + size > file.bytes()) {
      *local = absl::DataLossError(absl::StrCat("cannot fetch ", file.name(), ": ", size,
                                                " bytes at ", chunk.offset(), ", expected ",
                                                file.bytes() - offset, " at most at ", offset));
    } else {
      *local = WriteAt(fd, part, chunk.data(), offset);
    }
    if (!local->ok()) {
      context.get()->TryCancel();
      break;
    }
    offset += size;
  }
  const grpc::Status status = reader->Finish();
  if (local->code() == absl::StatusCode::kDataLoss) ::unlink(part.c_str());
  if (!status.ok() || offset == file.bytes()) return status;
  // It ended early without saying so.
  return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the download ended early");
}

void FileCache::RemoveUnused(std::chrono::hours age) {
  std::lock_guard<std::mutex> lock(mutex_);
  std::error_code error;
  for (fs::directory_iterator entry(directory_, error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code ignored;
    const std::string sha256 = entry->path().stem().string();
    const auto used = fs::last_write_time(entry->path(), ignored);
    if (ignored || busy_.contains(sha256) || fs::file_time_type::clock::now() - used < age)
      continue;
    fs::remove(entry->path(), ignored);
    checked_.erase(sha256);
  }
}

}  // namespace lemo::agent
