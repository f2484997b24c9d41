#include "coordinator/api/cluster_service.h"

#include "absl/time/time.h"
#include "coordinator/api/content_stream.h"
#include "coordinator/api/errors.h"
#include "coordinator/api/names.h"
#include "google/protobuf/util/time_util.h"

namespace lemo::coordinator {

grpc::Status ClusterServiceImpl::ListWorkers(grpc::ServerContext*,
                                             const lemo::v1::ListWorkersRequest* request,
                                             lemo::v1::ListWorkersResponse* response) {
  const absl::StatusOr<int> page_size = PageSize(request->page_size());
  if (!page_size.ok()) return ToGrpc(page_size.status());
  // The token is the last name of the page before.
  for (lemo::v1::Worker& worker : cluster_->Workers()) {
    if (worker.name() <= request->page_token()) continue;
    if (response->workers_size() == *page_size) {
      response->set_next_page_token(response->workers(*page_size - 1).name());
      break;
    }
    *response->add_workers() = std::move(worker);
  }
  return grpc::Status::OK;
}

grpc::Status ClusterServiceImpl::Answer(const absl::Status& done, const std::string& name,
                                        lemo::v1::Worker* worker) {
  if (!done.ok()) return ToGrpc(done);
  for (lemo::v1::Worker& one : cluster_->Workers()) {
    if (one.name() == name) *worker = std::move(one);
  }
  return grpc::Status::OK;
}

grpc::Status ClusterServiceImpl::CordonWorker(grpc::ServerContext*,
                                              const lemo::v1::CordonWorkerRequest* request,
                                              lemo::v1::Worker* worker) {
  if (absl::Status valid = CheckName("workers", request->name(), "name"); !valid.ok())
    return ToGrpc(valid);
  return Answer(cluster_->Do(CordonRequested{request->name(), !request->uncordon()}),
                request->name(), worker);
}

grpc::Status ClusterServiceImpl::DrainWorker(grpc::ServerContext*,
                                             const lemo::v1::DrainWorkerRequest* request,
                                             lemo::v1::Worker* worker) {
  if (absl::Status valid = CheckName("workers", request->name(), "name"); !valid.ok())
    return ToGrpc(valid);
  return Answer(cluster_->Do(DrainRequested{request->name()}), request->name(), worker);
}

grpc::Status ClusterServiceImpl::GetQueue(grpc::ServerContext*, const lemo::v1::GetQueueRequest*,
                                          lemo::v1::GetQueueResponse* response) {
  for (const Cluster::QueueEntry& waiting : cluster_->Queue()) {
    lemo::v1::QueueEntry* entry = response->add_entries();
    entry->set_job(waiting.job.name());
    entry->set_display_name(waiting.job.spec().display_name());
    entry->set_reason(waiting.job.reason());
    entry->set_reason_code(waiting.job.reason_code());
    *entry->mutable_queued_time() = google::protobuf::util::TimeUtil::MicrosecondsToTimestamp(
        absl::ToUnixMicros(waiting.queued_time));
  }
  return grpc::Status::OK;
}

}  // namespace lemo::coordinator
