// ClusterService: workers and the queue.
#pragma once

#include "coordinator/runtime/cluster.h"
#include "lemo/v1/cluster_service.grpc.pb.h"

namespace lemo::coordinator {

// The cluster outlives the service.
class ClusterServiceImpl final : public lemo::v1::ClusterService::Service {
 public:
  explicit ClusterServiceImpl(Cluster* cluster) : cluster_(cluster) {}

  grpc::Status ListWorkers(grpc::ServerContext*, const lemo::v1::ListWorkersRequest*,
                           lemo::v1::ListWorkersResponse*) override;
  grpc::Status CordonWorker(grpc::ServerContext*, const lemo::v1::CordonWorkerRequest*,
                            lemo::v1::Worker*) override;
  grpc::Status DrainWorker(grpc::ServerContext*, const lemo::v1::DrainWorkerRequest*,
                           lemo::v1::Worker*) override;
  grpc::Status GetQueue(grpc::ServerContext*, const lemo::v1::GetQueueRequest*,
                        lemo::v1::GetQueueResponse*) override;

 private:
  grpc::Status Answer(const absl::Status& done, const std::string& name, lemo::v1::Worker* worker);

  Cluster* const cluster_;
};

}  // namespace lemo::coordinator
