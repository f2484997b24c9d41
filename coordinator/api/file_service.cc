#include "coordinator/api/file_service.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/violations.h"
#include "coordinator/api/content_stream.h"
#include "coordinator/api/errors.h"
#include "coordinator/api/names.h"
#include "google/protobuf/util/time_util.h"

namespace lemo::coordinator {
namespace {

constexpr size_t kUploadIdLimit = 128, kDisplayNameLimit = 255;
constexpr int64_t kFileLimit = int64_t{1} << 40;

Violations CheckStart(const lemo::v1::UploadStart& start) {
  Violations violations;
  if (start.upload_id().empty() || start.upload_id().size() > kUploadIdLimit) {
    violations.Add("start.upload_id", absl::StrCat("1 to ", kUploadIdLimit, " characters"));
  }
  const std::string& name = start.display_name();
  if (name.empty() || name.size() > kDisplayNameLimit ||
      std::any_of(name.begin(), name.end(), [](unsigned char c) { return c < 0x20 || c == '/'; })) {
    violations.Add(
        "start.display_name",
        absl::StrCat("1 to ", kDisplayNameLimit, " characters, no slash or control character"));
  }
  if (start.bytes() < 1 || start.bytes() > kFileLimit) {
    violations.Add("start.bytes", absl::StrCat("must be 1 to ", kFileLimit));
  }
  return violations;
}

}  // namespace

grpc::Status FileServiceImpl::UploadFile(grpc::ServerContext*,
                                         grpc::ServerReader<lemo::v1::UploadFileRequest>* reader,
                                         lemo::v1::File* file) {
  lemo::v1::UploadFileRequest request;
  if (!reader->Read(&request) || !request.has_start()) {
    return ToGrpc(absl::InvalidArgumentError("the first message must have `start`"));
  }
  lemo::v1::UploadStart start = request.start();
  start.set_sha256(absl::AsciiStrToLower(start.sha256()));
  if (const Violations violations = CheckStart(start); !violations.empty()) {
    return InvalidArgument(violations);
  }
  const auto finished = store_->FindUpload(start.upload_id());
  if (!finished.ok()) return ToGrpc(finished.status());
  if (finished->has_value()) {
    if ((*finished)->sha256() != start.sha256()) {
      return ToGrpc(absl::AlreadyExistsError(
          absl::StrCat("upload_id ", start.upload_id(), " was used for other content")));
    }
    *file = **finished;
    return grpc::Status::OK;
  }
  if (const absl::StatusOr<int64_t> bytes = artifacts_->Size(start.sha256()); bytes.ok()) {
    if (*bytes != start.bytes()) {
      return ToGrpc(absl::InvalidArgumentError(
          absl::StrCat("start.bytes: content of that SHA-256 has ", *bytes, " bytes")));
    }
  } else {
    const auto upload = artifacts_->BeginUpload(start.upload_id(), start.bytes(), start.sha256());
    if (!upload.ok()) return ToGrpc(upload.status());
    while (reader->Read(&request)) {
      if (!request.has_chunk()) {
        return ToGrpc(absl::InvalidArgumentError("every message but the first must have `chunk`"));
      }
      const absl::Status written =
          (*upload)->Write(request.chunk().offset(), request.chunk().data());
      if (!written.ok()) return ToGrpc(written);
    }
    if (const absl::Status done = (*upload)->Finish(); !done.ok()) return ToGrpc(done);
  }
  file->set_name("files/" + NewId());
  file->set_display_name(start.display_name());
  file->set_bytes(start.bytes());
  file->set_sha256(start.sha256());
  *file->mutable_create_time() = google::protobuf::util::TimeUtil::GetCurrentTime();
  return ToGrpc(
      janitor_->Name(start.sha256(), [&] { return store_->CreateFile(*file, start.upload_id()); }));
}

grpc::Status FileServiceImpl::GetUpload(grpc::ServerContext*,
                                        const lemo::v1::GetUploadRequest* request,
                                        lemo::v1::Upload* upload) {
  upload->set_upload_id(request->upload_id());
  const auto finished = store_->FindUpload(request->upload_id());
  if (!finished.ok()) return ToGrpc(finished.status());
  if (finished->has_value()) {
    upload->set_received_bytes((*finished)->bytes());
    *upload->mutable_file() = **finished;
    return grpc::Status::OK;
  }
  const absl::StatusOr<int64_t> received = artifacts_->ReceivedBytes(request->upload_id());
  if (!received.ok()) return ToGrpc(received.status());
  upload->set_received_bytes(*received);
  return grpc::Status::OK;
}

grpc::Status FileServiceImpl::GetFile(grpc::ServerContext*, const lemo::v1::GetFileRequest* request,
                                      lemo::v1::File* file) {
  if (absl::Status valid = CheckName("files", request->name(), "name"); !valid.ok())
    return ToGrpc(valid);
  absl::StatusOr<lemo::v1::File> found = store_->GetFile(request->name());
  if (!found.ok()) return ToGrpc(found.status());
  *file = *std::move(found);
  return grpc::Status::OK;
}

grpc::Status FileServiceImpl::ListFiles(grpc::ServerContext*,
                                        const lemo::v1::ListFilesRequest* request,
                                        lemo::v1::ListFilesResponse* response) {
  const absl::StatusOr<int> page_size = PageSize(request->page_size());
  if (!page_size.ok()) return ToGrpc(page_size.status());
  auto page = store_->ListFiles(*page_size, request->page_token());
  if (!page.ok()) return ToGrpc(page.status());
  for (lemo::v1::File& file : page->files) *response->add_files() = std::move(file);
  response->set_next_page_token(page->next_token);
  return grpc::Status::OK;
}

grpc::Status FileServiceImpl::DeleteFile(grpc::ServerContext*,
                                         const lemo::v1::DeleteFileRequest* request,
                                         google::protobuf::Empty*) {
  if (absl::Status valid = CheckName("files", request->name(), "name"); !valid.ok())
    return ToGrpc(valid);
  const absl::StatusOr<lemo::v1::File> file = store_->GetFile(request->name());
  if (!file.ok()) return ToGrpc(file.status());
  if (cluster_->UsesFile(request->name())) {
    return PreconditionFailed("IN_USE", request->name(),
                              request->name() + " is named by a job that has not ended");
  }
  if (absl::Status deleted = store_->DeleteFile(request->name()); !deleted.ok())
    return ToGrpc(deleted);
  janitor_->DropArtifacts({file->sha256()});
  return grpc::Status::OK;
}

grpc::Status FileServiceImpl::DownloadFile(grpc::ServerContext*,
                                           const lemo::v1::DownloadFileRequest* request,
                                           grpc::ServerWriter<lemo::v1::DataChunk>* writer) {
  if (absl::Status valid = CheckName("files", request->name(), "name"); !valid.ok())
    return ToGrpc(valid);
  const absl::StatusOr<lemo::v1::File> file = store_->GetFile(request->name());
  if (!file.ok()) return ToGrpc(file.status());
  return SendContent(artifacts_, file->sha256(), request->offset(), writer);
}

}  // namespace lemo::coordinator
