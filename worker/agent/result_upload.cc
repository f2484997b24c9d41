#include "worker/agent/result_upload.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace lemo::agent {
namespace {

namespace fs = std::filesystem;

constexpr size_t kChunkBytes = 256 << 10;

// Sends the file's bytes as chunks. False when the stream takes no more; `*local` tells when the
// file was the reason.
bool WriteChunks(const fs::path& path, const lemo::v1::Artifact& artifact,
                 grpc::ClientWriter<lemo::v1::UploadArtifactRequest>* writer, absl::Status* local) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) {
    *local = ErrnoStatus(errno, "open", path);
    return false;
  }
  absl::Cleanup close = [fd] { ::close(fd); };
  std::string buffer(kChunkBytes, '\0');
  // A file without bytes has one chunk too: the one that carries the checksum.
  for (int64_t offset = 0;;) {
    const ssize_t got = ::pread(fd, buffer.data(), buffer.size(), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 || (got == 0 && offset < artifact.bytes())) {
      *local = ErrnoStatus(got < 0 ? errno : EIO, "read", path);
      return false;
    }
    lemo::v1::UploadArtifactRequest request;
    lemo::v1::DataChunk* chunk = request.mutable_chunk();
    chunk->set_offset(offset);
    chunk->set_data(buffer.data(), static_cast<size_t>(got));
    offset += got;
    const bool last = offset >= artifact.bytes();
    if (last) chunk->set_sha256(artifact.sha256());
    if (!writer->Write(request)) return false;
    if (last) return true;
  }
}

}  // namespace

absl::StatusOr<lemo::v1::Artifact> UploadFile(const lemo::v1::AttemptId& id, const fs::path& path,
                                              const std::string& name,
                                              lemo::v1::WorkerService::Stub* stub,
                                              Canceller* canceller) {
  lemo::v1::Artifact artifact;
  artifact.set_path(name);
  std::error_code error;
  artifact.set_bytes(static_cast<int64_t>(fs::file_size(path, error)));
  if (error) return ErrnoStatus(error.value(), "measure", path);
  LEMO_ASSIGN_OR_RETURN(*artifact.mutable_sha256(), Sha256HexOfFile(path));
  for (Retry retry(canceller);;) {
    CancellableContext context(canceller, TransferTimeout(artifact.bytes()));
    lemo::v1::Artifact stored;
    const auto writer = stub->UploadArtifact(context.get(), &stored);
    lemo::v1::UploadArtifactRequest start;
    *start.mutable_start()->mutable_id() = id;
    *start.mutable_start()->mutable_artifact() = artifact;
    absl::Status local;
    if (writer->Write(start) && WriteChunks(path, artifact, writer.get(), &local)) {
      writer->WritesDone();
    }
    if (!local.ok()) context.get()->TryCancel();
    const grpc::Status status = writer->Finish();
    if (!local.ok()) return local;
    if (status.ok()) {
      if (stored.sha256() != artifact.sha256() || stored.bytes() != artifact.bytes()) {
        return absl::DataLossError(absl::StrCat(
            "cannot hand over ", name, ": sent ", artifact.bytes(), " bytes with SHA-256 ",
            artifact.sha256(), ", stored ", stored.bytes(), " with ", stored.sha256()));
      }
      return artifact;
    }
    if (canceller->cancelled()) return absl::CancelledError("the attempt was ended");
    if (!IsTransient(status) || !retry.Again(/*progress=*/false)) {
      if (canceller->cancelled()) return absl::CancelledError("the attempt was ended");
      return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                          absl::StrCat("cannot hand over ", name, ": ", status.error_message()));
    }
  }
}

std::vector<std::string> ResultFiles(const fs::path& out) {
  std::vector<std::string> names;
  for (const char* name : {"report.json", "report.html", "trainer_state.json"}) {
    std::error_code ignored;
    if (fs::symlink_status(out / name, ignored).type() == fs::file_type::regular) {
      names.push_back(name);
    }
  }
  for (const char* folder : {"adapter", "model", "predictor"}) {
    std::error_code error;
    for (fs::recursive_directory_iterator entry(out / folder, error), end; !error && entry != end;
         entry.increment(error)) {
      std::error_code ignored;
      if (entry->symlink_status(ignored).type() == fs::file_type::regular) {
        names.push_back(entry->path().lexically_relative(out).string());
      }
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

absl::StatusOr<std::vector<lemo::v1::Artifact>> UploadResult(const lemo::v1::AttemptId& id,
                                                             const fs::path& out,
                                                             lemo::v1::WorkerService::Stub* stub,
                                                             Canceller* canceller) {
  std::vector<lemo::v1::Artifact> artifacts;
  for (const std::string& name : ResultFiles(out)) {
    LEMO_ASSIGN_OR_RETURN(artifacts.emplace_back(),
                          UploadFile(id, out / name, name, stub, canceller));
  }
  if (artifacts.empty()) {
    return absl::NotFoundError(absl::StrCat("the ranks left no result in ", out.string()));
  }
  return artifacts;
}

}  // namespace lemo::agent
