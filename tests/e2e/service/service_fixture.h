// A coordinator and agents as child processes on loopback, and a client of theirs.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lemo/v1/cluster_service.grpc.pb.h"
#include "lemo/v1/file_service.grpc.pb.h"
#include "lemo/v1/job_service.grpc.pb.h"
#include "lemo/v1/model_service.grpc.pb.h"
#include "tests/e2e/train/process.h"
#include "tests/e2e/train/workspace.h"

namespace lemo::coordinator {

class Service {
 public:
  // Arguments of the coordinator beside --dir, --listen and --train.
  explicit Service(std::vector<std::string> coordinator_args = {"--lease-seconds", "8"});

  // Starts the coordinator, on a free port the first time and on the same one later.
  void StartCoordinator();
  void KillCoordinator();
  // SIGTERM; its exit code.
  int StopCoordinator();
  train::Process& coordinator() { return *coordinator_; }
  // Starts, or starts again, the agent of that name, in its directory. What `args` says comes in
  // place of a default.
  train::Process& StartAgent(const std::string& name, std::vector<std::string> args = {});
  void KillAgent(const std::string& name);
  std::filesystem::path AgentDir(const std::string& name) const;

  // Uploads train.jsonl and eval.jsonl of the workspace and makes the model known; then Spec() can
  // be submitted.
  void PutInputs(const std::string& model_path = train::Workspace::Model().string());
  // Where a test may write.
  const std::filesystem::path& path() const { return workspace_.path(); }
  // Four steps of LoRA over that model, as train::Workspace::Spec(), with names in place of paths.
  lemo::v1::JobSpec Spec() const;

  lemo::v1::Job Submit(const lemo::v1::JobSpec& spec);
  lemo::v1::Job Get(const std::string& name);
  // Follows the job's events until `enough` says so, or the job ends; across restarts of the
  // coordinator when `patient`. Checks that sequences have no gap. Answers all events so far.
  std::vector<lemo::v1::JobEvent> Watch(
      const std::string& name, const std::function<bool(const lemo::v1::JobEvent&)>& enough);
  // Follows it to the end.
  lemo::v1::Job Finish(const std::string& name);
  // Of an artifact, by what came.
  std::string DownloadedSha256(const std::string& name, const std::string& path);
  // Of the adapter that `lemo-train` by itself makes of the same spec.
  std::string UndisturbedSha256(const lemo::v1::JobSpec& spec);
  // What that run said; its output is in the workspace, in `undisturbed`.
  train::Outcome RunUndisturbed(const lemo::v1::JobSpec& spec);

  lemo::v1::JobService::StubInterface& jobs() { return *jobs_; }
  lemo::v1::FileService::StubInterface& files() { return *files_; }
  lemo::v1::ClusterService::StubInterface& cluster() { return *cluster_; }
  const train::Workspace& workspace() const { return workspace_; }
  const std::string& address() const { return address_; }

 private:
  std::string Upload(const std::string& file);

  const std::vector<std::string> coordinator_args_;
  train::Workspace workspace_;
  std::string address_ = "127.0.0.1:0";
  std::unique_ptr<train::Process> coordinator_;
  std::map<std::string, std::unique_ptr<train::Process>> agents_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<lemo::v1::JobService::Stub> jobs_;
  std::unique_ptr<lemo::v1::FileService::Stub> files_;
  std::unique_ptr<lemo::v1::ModelService::Stub> models_;
  std::unique_ptr<lemo::v1::ClusterService::Stub> cluster_;
  std::map<std::string, std::string> names_;  // of uploaded files
  std::string model_path_;
};

// Bounds every wait of a test.
std::unique_ptr<grpc::ClientContext> Patiently();

}  // namespace lemo::coordinator
