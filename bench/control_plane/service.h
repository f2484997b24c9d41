// A coordinator of the benchmark's own, and a client of it.
#pragma once

#include <grpcpp/grpcpp.h>

#include <filesystem>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "bench/control_plane/process.h"
#include "lemo/v1/cluster_service.grpc.pb.h"
#include "lemo/v1/file_service.grpc.pb.h"
#include "lemo/v1/job_service.grpc.pb.h"
#include "lemo/v1/model_service.grpc.pb.h"

namespace lemo::bench {

struct Settings {
  std::string coordinator, worker, train;  // programs
  std::filesystem::path model;             // a Hugging Face directory
  std::filesystem::path scratch;           // empty; everything is written below
  bool quick = false;
};

absl::Status FromGrpc(const grpc::Status& status, const std::string& what);
// Of its own: calls on it share no connection with others.
std::shared_ptr<grpc::Channel> Dial(const std::string& address);

class Service {
 public:
  // Over what `directory` holds, with default options. Answers when its health is SERVING.
  static absl::StatusOr<std::unique_ptr<Service>> Start(const Settings& settings,
                                                        const std::filesystem::path& directory);

  // Answers when the worker is READY.
  absl::StatusOr<std::unique_ptr<Process>> StartWorker(const std::filesystem::path& directory);
  // Makes the model known and uploads rows of text; a job over them, of so many steps.
  absl::StatusOr<lemo::v1::JobSpec> PutJob(int steps);

  const std::string& address() const { return address_; }
  pid_t pid() const { return process_->pid(); }
  int Stop() { return process_->Stop(); }
  absl::Duration start_time() const { return start_time_; }
  lemo::v1::JobService::Stub& jobs() { return *jobs_; }

 private:
  Service(const Settings& settings, std::unique_ptr<Process> process, std::string address);
  absl::StatusOr<std::string> Upload(const std::string& name, const std::string& text);

  const Settings settings_;
  const std::unique_ptr<Process> process_;
  const std::string address_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<lemo::v1::JobService::Stub> jobs_;
  absl::Duration start_time_;
};

// Rows of text from a fixed seed, as JSON lines; and the run over them that jobs and lemo-train by
// itself make. `run` lacks paths of model and data.
std::string Rows();
lemo::v1::RunSpec RunOverRows(int steps);

}  // namespace lemo::bench
