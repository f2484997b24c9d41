// A coordinator in a process of its own, and those who speak with it.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lemo/v1/admin_service.grpc.pb.h"
#include "lemo/v1/file_service.grpc.pb.h"
#include "lemo/v1/job_service.grpc.pb.h"
#include "lemo/v1/model_service.grpc.pb.h"
#include "lemo/v1/worker_service.grpc.pb.h"
#include "tests/e2e/train/process.h"

namespace lemo::coordinator {

// Ample on a loaded machine: what takes this long hangs.
inline constexpr std::chrono::seconds kPatience{60};

// Polls until `condition` holds; false when that takes too long.
bool Comes(const std::function<bool()>& condition);

// With a deadline, and patient while the coordinator is not there.
std::unique_ptr<grpc::ClientContext> Patiently();

// What an agent says and hears. Belongs to one thread.
class Agent {
 public:
  explicit Agent(const std::shared_ptr<grpc::Channel>& channel);
  ~Agent();  // breaks the stream off

  // As workers/{worker} with one CPU device.
  void Hello(const std::string& worker, const std::vector<lemo::v1::AttemptId>& attempts = {});
  void Say(const lemo::v1::AgentMessage& message) { stream_->Write(message); }
  // The next message for which `wanted` holds; an empty one when the stream has ended before.
  lemo::v1::CoordinatorMessage Hear(
      const std::function<bool(const lemo::v1::CoordinatorMessage&)>& wanted);
  // Says no more, and answers how the stream ended.
  grpc::Status Finish();

 private:
  std::unique_ptr<grpc::ClientContext> context_ = Patiently();
  std::unique_ptr<lemo::v1::WorkerService::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<lemo::v1::AgentMessage, lemo::v1::CoordinatorMessage>>
      stream_;
  bool finished_ = false;
};

// Removes all that it made.
class CoordinatorTest : public testing::Test {
 protected:
  CoordinatorTest();
  ~CoordinatorTest() override;

  // On `dir` below the scratch directory. Fails the test unless it comes up.
  void Start(const std::string& dir = "data", std::vector<std::string> more = {});
  int Stop();  // with SIGTERM; the exit code
  // One that is expected to fail: its exit code, and what it said.
  struct Ending {
    int code = 0;
    std::string said;
  };
  Ending StartToFail(const std::filesystem::path& dir, train::ProcessOptions options = {});
  // A program that runs to its end.
  Ending Run(const std::string& program, const std::vector<std::string>& args,
             std::string* output = nullptr);

  // A connection of its own.
  std::shared_ptr<grpc::Channel> Dial() const;

  // The file's name.
  std::string Upload(const std::string& data, const std::string& upload_id = "");
  grpc::Status TryUpload(const std::vector<lemo::v1::UploadFileRequest>& messages,
                         lemo::v1::File* file);
  void AddModel();
  lemo::v1::JobSpec Spec(const std::string& file) const;
  lemo::v1::Job Submit(const lemo::v1::JobSpec& spec);
  lemo::v1::Job Get(const std::string& name);
  // Until the job is in `state`; fails the test when it does not come.
  lemo::v1::Job Await(const std::string& name, lemo::v1::Job::State state);
  // The content that a download gives, which has the checksum that came with it.
  std::string Download(const std::string& file);
  std::string DownloadArtifact(const std::string& job, const std::string& path);

  // A model, a file, and a job of them in state STARTING on workers/a.
  struct Placed {
    std::unique_ptr<Agent> agent;
    lemo::v1::AttemptId id;
  };
  Placed Place();
  // Uploads a file of the attempt's result.
  grpc::Status PutResult(const lemo::v1::AttemptId& id, const std::string& path,
                         const std::string& data, lemo::v1::Artifact* artifact);
  // What an agent says of an attempt.
  static lemo::v1::AgentMessage Started(const lemo::v1::AttemptId& id);
  static lemo::v1::AgentMessage Events(const lemo::v1::AttemptId& id, int64_t first, int count,
                                       const std::string& text = "text");
  static lemo::v1::AgentMessage Succeeded(const lemo::v1::AttemptId& id, int64_t last_sequence,
                                          const std::vector<lemo::v1::Artifact>& artifacts);
  // Lets the attempt succeed with a result of one file.
  void Succeed(const Placed& placed, const std::string& data);

  std::filesystem::path scratch_;
  std::string train_;  // lemo-train, or what stands in for it
  std::unique_ptr<train::Process> process_;
  std::string address_ = "127.0.0.1:0";
  std::unique_ptr<lemo::v1::JobService::Stub> jobs_;
  std::unique_ptr<lemo::v1::FileService::Stub> files_;
  std::unique_ptr<lemo::v1::ModelService::Stub> models_;
  std::unique_ptr<lemo::v1::AdminService::Stub> admin_;
  std::unique_ptr<lemo::v1::WorkerService::Stub> workers_;
};

}  // namespace lemo::coordinator
