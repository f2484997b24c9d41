// WorkerService: the agents' streams.
#pragma once

#include "coordinator/artifacts/artifacts.h"
#include "coordinator/runtime/cluster.h"
#include "lemo/v1/worker_service.grpc.pb.h"

namespace lemo::coordinator {

// Everything outlives the service. One thread of gRPC's an agent reads, and one of ours writes.
class WorkerServiceImpl final : public lemo::v1::WorkerService::Service {
 public:
  // `checkpoints` holds those of running jobs, apart from what is kept for good.
  WorkerServiceImpl(Cluster* cluster, ArtifactStore* artifacts, ArtifactStore* checkpoints)
      : cluster_(cluster), artifacts_(artifacts), checkpoints_(checkpoints) {}

  using AgentStream =
      grpc::ServerReaderWriter<lemo::v1::CoordinatorMessage, lemo::v1::AgentMessage>;
  grpc::Status Connect(grpc::ServerContext*, AgentStream*) override;
  grpc::Status UploadArtifact(grpc::ServerContext*,
                              grpc::ServerReader<lemo::v1::UploadArtifactRequest>*,
                              lemo::v1::Artifact*) override;

 private:
  // An attempt that succeeded has uploaded its files; a message that says so without them becomes
  // one that tells of a fault, for which the job is restarted.
  void CheckResult(lemo::v1::AttemptEnded* ended) const;
  // Whether every file of it was uploaded.
  bool IsWhole(const lemo::v1::JobCheckpoint& checkpoint) const;

  Cluster* const cluster_;
  ArtifactStore* const artifacts_;
  ArtifactStore* const checkpoints_;
};

}  // namespace lemo::coordinator
