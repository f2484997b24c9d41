// ModelService: base models by name.
#pragma once

#include "absl/status/statusor.h"
#include "coordinator/store/store.h"
#include "lemo/v1/model_service.grpc.pb.h"

namespace lemo::coordinator {

// Reads config.json and the headers and contents of the weights of a model directory on this host:
// family, parameters, bytes and fingerprint. INVALID_ARGUMENT with the file and what is wrong with
// it.
absl::StatusOr<lemo::v1::Model> InspectModel(const std::string& path);

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

 private:
  Store* const store_;
};

}  // namespace lemo::coordinator
