// FileService: uploads that can be gone on with, over content-addressed artifacts.
#pragma once

#include "coordinator/artifacts/artifacts.h"
#include "coordinator/runtime/cluster.h"
#include "coordinator/runtime/janitor.h"
#include "coordinator/store/store.h"
#include "lemo/v1/file_service.grpc.pb.h"

namespace lemo::coordinator {

// Everything outlives the service.
class FileServiceImpl final : public lemo::v1::FileService::Service {
 public:
  FileServiceImpl(Store* store, ArtifactStore* artifacts, Cluster* cluster, Janitor* janitor)
      : store_(store), artifacts_(artifacts), cluster_(cluster), janitor_(janitor) {}

  grpc::Status UploadFile(grpc::ServerContext*, grpc::ServerReader<lemo::v1::UploadFileRequest>*,
                          lemo::v1::File*) override;
  grpc::Status GetUpload(grpc::ServerContext*, const lemo::v1::GetUploadRequest*,
                         lemo::v1::Upload*) override;
  grpc::Status GetFile(grpc::ServerContext*, const lemo::v1::GetFileRequest*,
                       lemo::v1::File*) override;
  grpc::Status ListFiles(grpc::ServerContext*, const lemo::v1::ListFilesRequest*,
                         lemo::v1::ListFilesResponse*) override;
  grpc::Status DeleteFile(grpc::ServerContext*, const lemo::v1::DeleteFileRequest*,
                          google::protobuf::Empty*) override;
  grpc::Status DownloadFile(grpc::ServerContext*, const lemo::v1::DownloadFileRequest*,
                            grpc::ServerWriter<lemo::v1::DataChunk>*) override;

 private:
  Store* const store_;
  ArtifactStore* const artifacts_;
  Cluster* const cluster_;
  Janitor* const janitor_;
};

}  // namespace lemo::coordinator
