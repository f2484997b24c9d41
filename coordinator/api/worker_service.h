// WorkerService: the agents' streams.
#pragma once

#include "coordinator/artifacts/artifacts.h"
#include "coordinator/runtime/cluster.h"
#include "lemo/v1/worker_service.grpc.pb.h"

namespace lemo::coordinator {

// Everything outlives the service. One thread of gRPC's an agent reads, and one of ours writes.
class WorkerServiceImpl final : public lemo::v1::WorkerService::Service {
 public:
  WorkerServiceImpl(Cluster* cluster, ArtifactStore* artifacts)
      : cluster_(cluster), artifacts_(artifacts) {}

  using AgentStream =
      grpc::ServerReaderWriter<lemo::v1::CoordinatorMessage, lemo::v1::AgentMessage>;
  grpc::Status Connect(grpc::ServerContext*, AgentStream*) override;
  grpc::Status UploadArtifact(grpc::ServerContext*,
                              grpc::ServerReader<lemo::v1::UploadArtifactRequest>*,
                              lemo::v1::Artifact*) override;

 private:
  Cluster* const cluster_;
  ArtifactStore* const artifacts_;
};

}  // namespace lemo::coordinator
