// ModelService: base models by name.
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "coordinator/store/store.h"
#include "lemo/v1/model_service.grpc.pb.h"

namespace lemo::coordinator {

// Reads the files of a model directory on this host, all of them and whole, which takes long for
// large models: family, parameters, bytes, files and fingerprint. INVALID_ARGUMENT with the file
// and what is wrong with it; CANCELLED when `go_on`, which is asked often, says no.
absl::StatusOr<lemo::v1::Model> InspectModel(const std::string& path,
                                             const std::function<bool()>& go_on);

// The store outlives the service.
class ModelServiceImpl final : public lemo::v1::ModelService::Service {
 public:
  explicit ModelServiceImpl(Store* store) : store_(store) {}

  grpc::Status AddModel(grpc::ServerContext*, const lemo::v1::AddModelRequest*,
                        lemo::v1::Model*) override;
  grpc::Status GetModel(grpc::ServerContext*, const lemo::v1::GetModelRequest*,
                        lemo::v1::Model*) override;
  grpc::Status ListModels(grpc::ServerContext*, const lemo::v1::ListModelsRequest*,
                          lemo::v1::ListModelsResponse*) override;
  grpc::Status DeleteModel(grpc::ServerContext*, const lemo::v1::DeleteModelRequest*,
                           google::protobuf::Empty*) override;
  grpc::Status DownloadModelFile(grpc::ServerContext*, const lemo::v1::DownloadModelFileRequest*,
                                 grpc::ServerWriter<lemo::v1::DataChunk>*) override;

 private:
  Store* const store_;
};

}  // namespace lemo::coordinator
