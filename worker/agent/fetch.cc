#include "worker/agent/fetch.h"

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

// One call, appending to `part` from its end.
grpc::Status Download(const FetchRequest& request, const fs::path& part, Canceller* canceller,
                      absl::Status* local) {
  const int fd = ::open(part.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) {
    *local = ErrnoStatus(errno, "create", part);
    return grpc::Status::OK;
  }
  absl::Cleanup close = [fd] { ::close(fd); };
  int64_t offset = SizeOf(part);
  if (offset == request.bytes && offset > 0) return grpc::Status::OK;
  if (offset > request.bytes) {
    offset = 0;
    if (::ftruncate(fd, 0) != 0) *local = ErrnoStatus(errno, "cut", part);
    if (!local->ok()) return grpc::Status::OK;
  }
  CancellableContext context(canceller, TransferTimeout(request.bytes - offset));
  const auto reader = request.open(context.get(), offset);
  for (lemo::v1::DataChunk chunk; reader->Read(&chunk);) {
    const int64_t size = static_cast<int64_t>(chunk.data().size());
    if (chunk.offset() != offset || offset + size > request.bytes) {
      *local = absl::DataLossError(absl::StrCat("cannot fetch ", request.name, ": ", size,
                                                " bytes at ", chunk.offset(), ", expected ",
                                                request.bytes - offset, " at most at ", offset));
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
  if (!status.ok() || offset == request.bytes) return status;
  // It ended early without saying so.
  return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the download ended early");
}

absl::Status Cancelled() { return absl::CancelledError("the attempt was ended"); }

}  // namespace

bool IsSha256(const std::string& text) {
  return text.size() == 64 && std::all_of(text.begin(), text.end(), [](char c) {
           return absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f');
         });
}

absl::Status FetchFile(const FetchRequest& request, Canceller* canceller) {
  const fs::path part = request.path.string() + ".part";
  Retry retry(canceller);
  bool anew = false;
  for (;;) {
    if (canceller->cancelled()) return Cancelled();
    const int64_t before = SizeOf(part);
    absl::Status local;
    const grpc::Status status = Download(request, part, canceller, &local);
    if (!local.ok()) return local;
    if (canceller->cancelled()) return Cancelled();
    if (status.ok()) {
      LEMO_ASSIGN_OR_RETURN(const std::string sha256,
                            Sha256HexOfFile(part, [canceller] { return !canceller->cancelled(); }));
      const int64_t size = SizeOf(part);
      if (sha256 == request.sha256 && size == request.bytes) break;
      ::unlink(part.c_str());
      // What was there from an earlier life may have been the fault; what came whole may not.
      if (before == 0 || anew) {
        return absl::DataLossError(absl::StrCat("cannot fetch ", request.name, ": got ", size,
                                                " bytes with SHA-256 ", sha256, ", expected ",
                                                request.bytes, " with ", request.sha256));
      }
      anew = true;
      continue;
    }
    if (status.error_code() == grpc::StatusCode::OUT_OF_RANGE && before > 0) {
      ::unlink(part.c_str());
      continue;
    }
    if (!IsTransient(status) || !retry.Again(SizeOf(part) > before)) {
      if (canceller->cancelled()) return Cancelled();
      return absl::Status(
          static_cast<absl::StatusCode>(status.error_code()),
          absl::StrCat("cannot fetch ", request.name, ": ", status.error_message()));
    }
  }
  LEMO_RETURN_IF_ERROR(SyncPath(part));
  if (::rename(part.c_str(), request.path.c_str()) != 0) {
    return ErrnoStatus(errno, "rename to", request.path);
  }
  return SyncPath(request.path.parent_path());
}

}  // namespace lemo::agent
