#include "cli/upload.h"

#include <algorithm>
#include <memory>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/errors.h"
#include "cli/progress.h"
#include "cli/uuid.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace lemo::cli {
namespace {

constexpr size_t kChunkBytes = 256 << 10;
// Attempts in a row that brought no byte across.
constexpr int kMaxFruitless = 5;
// Slower than this is as good as broken: an attempt has the time that its bytes take at this speed.
constexpr double kSlowestBytesPerSecond = 64 << 10;

class Uploader {
 public:
  Uploader(const Connection& connection, std::string_view bytes, lemo::v1::UploadStart start,
           std::ostream& err)
      : connection_(connection),
        bytes_(bytes),
        start_(std::move(start)),
        what_(absl::StrCat("upload ", start_.display_name())),
        progress_(err, what_, start_.bytes()) {}

  absl::StatusOr<lemo::v1::File> Run() {
    Backoff backoff;
    int64_t furthest = -1;
    for (int fruitless = 0;; ++fruitless) {
      lemo::v1::Upload upload;
      grpc::Status status = GetUpload(&upload);
      if (status.ok() && upload.has_file()) return upload.file();
      if (status.error_code() == grpc::StatusCode::NOT_FOUND) status = grpc::Status::OK;
      if (status.ok()) {
        const int64_t offset = std::clamp<int64_t>(upload.received_bytes(), 0, start_.bytes());
        if (offset > std::exchange(furthest, std::max(furthest, offset))) fruitless = 0;
        lemo::v1::File file;
        status = Send(offset, &file);
        if (status.ok()) return file;
      }
      if (!IsTransient(status.error_code()) || fruitless + 1 >= kMaxFruitless) {
        return RpcError(what_, connection_.address(), status);
      }
      connection_.Pause(backoff.Next());
    }
  }

 private:
  grpc::Status GetUpload(lemo::v1::Upload* upload) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + connection_.timeout()));
    lemo::v1::GetUploadRequest request;
    request.set_upload_id(start_.upload_id());
    return connection_.files().GetUpload(&context, request, upload);
  }

  grpc::Status Send(int64_t offset, lemo::v1::File* file) {
    grpc::ClientContext context;
    const double seconds = static_cast<double>(start_.bytes() - offset) / kSlowestBytesPerSecond;
    context.set_deadline(
        absl::ToChronoTime(absl::Now() + connection_.timeout() + absl::Seconds(seconds)));
    const auto writer = connection_.files().UploadFile(&context, file);
    lemo::v1::UploadFileRequest request;
    *request.mutable_start() = start_;
    bool open = writer->Write(request);
    while (open && offset < start_.bytes()) {
      const std::string_view part = bytes_.substr(static_cast<size_t>(offset), kChunkBytes);
      request.mutable_chunk()->set_offset(offset);
      request.mutable_chunk()->set_data(part.data(), part.size());
      open = writer->Write(request);
      offset += static_cast<int64_t>(part.size());
      progress_.Update(offset);
    }
    // When the other side has closed, the reason is in the status.
    if (open) writer->WritesDone();
    return writer->Finish();
  }

  const Connection& connection_;
  const std::string_view bytes_;
  const lemo::v1::UploadStart start_;
  const std::string what_;
  ProgressLine progress_;
};

}  // namespace

absl::StatusOr<lemo::v1::File> Upload(const Connection& connection,
                                      const std::filesystem::path& path,
                                      const std::string& display_name, std::ostream& err) {
  LEMO_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  lemo::v1::UploadStart start;
  start.set_sha256(Sha256Hex(file.bytes()));
  start.set_upload_id(UuidOfSha256(start.sha256()));
  start.set_bytes(static_cast<int64_t>(file.bytes().size()));
  start.set_display_name(display_name);
  return Uploader(connection, file.bytes(), std::move(start), err).Run();
}

}  // namespace lemo::cli
