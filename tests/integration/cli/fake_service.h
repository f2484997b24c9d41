// A coordinator that says what a test tells it to.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "grpcpp/grpcpp.h"
#include "lemo/v1/cluster_service.grpc.pb.h"
#include "lemo/v1/file_service.grpc.pb.h"
#include "lemo/v1/job_service.grpc.pb.h"
#include "lemo/v1/model_service.grpc.pb.h"

namespace lemo::cli {

// What the service knows and what it was asked; outlives servers, as a real one's disk does.
// Guarded by `mutex`.
struct FakeState {
  std::mutex mutex;
  std::condition_variable changed;  // after a watcher got what there is

  std::map<std::string, lemo::v1::Job> jobs;
  std::map<std::string, std::vector<lemo::v1::JobEvent>> events;
  std::map<std::string, std::string> artifacts;  // bytes by path, of every job
  std::map<std::string, std::string> logs;       // by job
  std::map<std::string, std::string> uploads;    // received bytes by upload id
  std::map<std::string, lemo::v1::File> files;   // by upload id
  std::map<std::string, std::string> models;     // paths by id
  std::vector<lemo::v1::Worker> workers;

  int unavailable_submits = 0;        // so many are answered UNAVAILABLE first
  grpc::Status submit_status;         // of the others
  int64_t break_upload_after = -1;    // once, when so many bytes have come
  int64_t break_download_after = -1;  // once, when so many bytes have gone

  lemo::v1::PlanJobResponse plan;  // what every PlanJob is answered
  std::vector<lemo::v1::PlanJobRequest> plans;

  std::vector<lemo::v1::SubmitJobRequest> submits;
  std::vector<lemo::v1::UploadStart> upload_starts;
  std::vector<int64_t> uploaded_from, downloaded_from, watched_from;
  size_t watchers_waiting = 0;  // that have all events there are
};

// A server on loopback. The destructor cuts every stream.
class FakeServer {
 public:
  // Port 0 takes a free one.
  explicit FakeServer(FakeState* state, int port = 0);
  ~FakeServer();

  int port() const { return port_; }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

 private:
  struct Services;
  std::unique_ptr<Services> services_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
};

// An event of jobs/a that moves it to `to`.
lemo::v1::JobEvent StateEvent(int64_t sequence, lemo::v1::Job::State to,
                              const std::string& reason = "");
// An event of jobs/a about one step.
lemo::v1::JobEvent StepEvent(int64_t sequence, int step);

}  // namespace lemo::cli
