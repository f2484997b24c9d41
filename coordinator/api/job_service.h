// JobService: thin handlers over the cluster, the store and the artifacts.
#pragma once

#include "coordinator/artifacts/artifacts.h"
#include "coordinator/runtime/cluster.h"
#include "coordinator/runtime/log_files.h"
#include "coordinator/runtime/validator.h"
#include "coordinator/runtime/watch_hub.h"
#include "coordinator/store/store.h"
#include "lemo/v1/job_service.grpc.pb.h"

namespace lemo::coordinator {

// Everything outlives the service. Calls that stay open (WatchJob, ReadLogs) end with their
// server's Shutdown.
class JobServiceImpl final
    : public lemo::v1::JobService::WithCallbackMethod_WatchJob<lemo::v1::JobService::Service> {
 public:
  JobServiceImpl(Cluster* cluster, Store* store, ArtifactStore* artifacts,
                 ArtifactStore* checkpoints, WatchHub* hub, Validator* validator,
                 const LogFiles* logs, absl::Duration keep_logs = absl::InfiniteDuration())
      : cluster_(cluster),
        store_(store),
        artifacts_(artifacts),
        checkpoints_(checkpoints),
        hub_(hub),
        validator_(validator),
        logs_(logs),
        keep_logs_(keep_logs) {}

  grpc::Status SubmitJob(grpc::ServerContext*, const lemo::v1::SubmitJobRequest*,
                         lemo::v1::Job*) override;
  grpc::Status PlanJob(grpc::ServerContext*, const lemo::v1::PlanJobRequest*,
                       lemo::v1::PlanJobResponse*) override;
  grpc::Status GetJob(grpc::ServerContext*, const lemo::v1::GetJobRequest*,
                      lemo::v1::Job*) override;
  grpc::Status ListJobs(grpc::ServerContext*, const lemo::v1::ListJobsRequest*,
                        lemo::v1::ListJobsResponse*) override;
  grpc::Status CancelJob(grpc::ServerContext*, const lemo::v1::CancelJobRequest*,
                         lemo::v1::Job*) override;
  grpc::Status PauseJob(grpc::ServerContext*, const lemo::v1::PauseJobRequest*,
                        lemo::v1::Job*) override;
  grpc::Status ResumeJob(grpc::ServerContext*, const lemo::v1::ResumeJobRequest*,
                         lemo::v1::Job*) override;
  grpc::ServerWriteReactor<lemo::v1::WatchJobResponse>* WatchJob(
      grpc::CallbackServerContext*, const lemo::v1::WatchJobRequest*) override;
  grpc::Status ReadLogs(grpc::ServerContext*, const lemo::v1::ReadLogsRequest*,
                        grpc::ServerWriter<lemo::v1::LogChunk>*) override;
  grpc::Status ListCheckpoints(grpc::ServerContext*, const lemo::v1::ListCheckpointsRequest*,
                               lemo::v1::ListCheckpointsResponse*) override;
  grpc::Status DownloadArtifact(grpc::ServerContext*, const lemo::v1::DownloadArtifactRequest*,
                                grpc::ServerWriter<lemo::v1::DataChunk>*) override;

 private:
  template <typename Requested, typename Request>
  grpc::Status Steer(const Request& request, lemo::v1::Job* job);

  Cluster* const cluster_;
  Store* const store_;
  ArtifactStore* const artifacts_;
  ArtifactStore* const checkpoints_;
  WatchHub* const hub_;
  Validator* const validator_;
  const LogFiles* const logs_;
  const absl::Duration keep_logs_;
};

}  // namespace lemo::coordinator
