#include "tests/integration/gang_nodes/cluster.h"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <sstream>
#include <utility>

#include "common/files.h"
#include "gtest/gtest.h"
#include "tests/support/service_calls.h"
#include "worker/agent/gang_command.h"

namespace lemo::agent {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::seconds kPatience{90};
constexpr char kModel[] = LEMO_SOURCE_DIR "/tests/fixtures/stories260k";

std::unique_ptr<grpc::ClientContext> Patiently() {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(std::chrono::system_clock::now() + kPatience);
  context->set_wait_for_ready(true);
  return context;
}

std::string ReadAll(const fs::path& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

void KillAndWait(pid_t pid) {
  if (pid <= 0) return;
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
}

}  // namespace

bool Eventually(const std::function<bool()>& holds) {
  for (const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);;) {
    if (holds()) return true;
    if (std::chrono::steady_clock::now() > end) return false;
    ::poll(nullptr, 0, 20);
  }
}

Cluster::Cluster(std::string train, std::vector<int> devices, Nodes nodes)
    : train_(std::move(train)), devices_(std::move(devices)), nodes_(nodes) {
  const auto* test = testing::UnitTest::GetInstance()->current_test_info();
  directory_ = fs::path(testing::TempDir()) /
               ("lemo_gang_nodes_" + std::string(test->name()) + "_" + std::to_string(::getpid()));
  fs::remove_all(directory_);
  fs::create_directories(directory_);
  // Nodes before gRPC has threads: making one forks and does more than call exec.
  for (size_t i = 0; i < devices_.size(); ++i) {
    const int node = static_cast<int>(i) + 2;
    addresses_[node] = nodes_ == Nodes::kOneMachine ? "127.0.0.1" : network_.AddNode(node);
  }
  StartCoordinator();
  for (const auto& [node, address] : addresses_) StartAgent(node);
}

Cluster::~Cluster() {
  for (const auto& [node, pid] : agents_) KillAndWait(pid);
  KillAndWait(coordinator_);
  if (testing::Test::HasFailure()) {
    for (const auto& entry : fs::recursive_directory_iterator(directory_)) {
      if (entry.path().extension() == ".log") {
        std::cerr << "--- " << entry.path().lexically_relative(directory_) << "\n"
                  << ReadAll(entry.path());
      }
    }
  }
  // What the next agent on its directory would see to, if there were one.
  std::error_code ignored;
  for (const auto& [node, address] : addresses_) {
    for (fs::directory_iterator job(AgentDirectory(node) / "jobs", ignored), end;
         !ignored && job != end; job.increment(ignored)) {
      RemoveScratch(job->path());
    }
  }
  fs::remove_all(directory_, ignored);
}

void Cluster::StartCoordinator() {
  const fs::path dir = directory_ / "coordinator";
  std::vector<std::string> words = {LEMO_COORDINATOR_BINARY,
                                    "--dir",
                                    dir.string(),
                                    "--listen",
                                    std::string(Network::kAddress) + ":0",
                                    "--insecure-listen",
                                    "--train",
                                    train_,
                                    "--lease-seconds",
                                    "6"};
  const std::string log = (directory_ / "coordinator.log").string();
  coordinator_ = ::fork();
  if (coordinator_ == 0) {
    ::freopen(log.c_str(), "a", stderr);
    ::freopen(log.c_str(), "a", stdout);
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  ASSERT_TRUE(Eventually([&] { return fs::exists(dir / "address"); })) << ReadAll(log);
  std::ifstream(dir / "address") >> coordinator_address_;
  const auto channel =
      grpc::CreateChannel(coordinator_address_, grpc::InsecureChannelCredentials());
  jobs_ = lemo::v1::JobService::NewStub(channel);
  files_ = lemo::v1::FileService::NewStub(channel);
  models_ = lemo::v1::ModelService::NewStub(channel);
  cluster_ = lemo::v1::ClusterService::NewStub(channel);
  lemo::v1::AddModelRequest request;
  request.set_model_id("tiny");
  request.set_path(kModel);
  lemo::v1::Model model;
  const grpc::Status status = models_->AddModel(Patiently().get(), request, &model);
  ASSERT_TRUE(status.ok()) << status.error_message();
}

fs::path Cluster::AgentDirectory(int node) const {
  return directory_ / ("agent-" + std::to_string(node));
}

void Cluster::StartAgent(int node) {
  const std::string name = "node-" + std::to_string(node);
  agents_[node] = network_.Spawn(
      nodes_ == Nodes::kOneMachine ? 0 : node,
      {LEMO_WORKER_BINARY, "--coordinator", coordinator_address_, "--dir",
       AgentDirectory(node).string(), "--name", name, "--train", train_, "--cuda", "none",
       "--cpu-devices", std::to_string(devices_.at(static_cast<size_t>(node - 2))), "--listen",
       addresses_.at(node) + ":0", "--insecure-listen", "--mpi-ports", "17000-17199"},
      (directory_ / (name + ".log")).string());
}

void Cluster::KillAgent(int node) { KillAndWait(std::exchange(agents_.at(node), 0)); }

int Cluster::DrainAgent(int node) {
  const pid_t pid = std::exchange(agents_.at(node), 0);
  ::kill(pid, SIGTERM);
  int status = 0;
  ::waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

std::string Cluster::Worker(int node) {
  std::string id;
  std::ifstream(AgentDirectory(node) / "id") >> id;
  return id.starts_with("workers/") ? id : "workers/" + id;
}

int Cluster::Ready() {
  lemo::v1::ListWorkersResponse workers;
  cluster_->ListWorkers(Patiently().get(), {}, &workers);
  return static_cast<int>(
      std::count_if(workers.workers().begin(), workers.workers().end(),
                    [](const auto& worker) { return worker.state() == lemo::v1::Worker::READY; }));
}

std::string Cluster::Upload(const std::string& name, const std::string& data) {
  return service_calls::UploadFile(*files_, Patiently().get(), name, data);
}

lemo::v1::JobSpec Cluster::Spec(int ranks, const std::string& script) {
  lemo::v1::JobSpec spec;
  spec.mutable_run()->mutable_model()->set_path("models/tiny");
  spec.mutable_run()->mutable_data()->add_train()->set_path(Upload("script", script));
  spec.mutable_run()->mutable_tuner()->mutable_full();
  spec.mutable_run()->mutable_train()->set_steps(1);
  spec.mutable_resources()->set_ranks(ranks);
  spec.mutable_restart()->set_backoff_seconds(0.1);
  return spec;
}

lemo::v1::Job Cluster::Submit(const lemo::v1::JobSpec& spec) {
  return service_calls::SubmitJob(*jobs_, Patiently().get(), spec);
}

lemo::v1::Job Cluster::Get(const std::string& name) {
  return service_calls::GetJob(*jobs_, Patiently().get(), name);
}

void Cluster::Pause(const std::string& job) {
  lemo::v1::PauseJobRequest request;
  request.set_name(job);
  lemo::v1::Job paused;
  const grpc::Status status = jobs_->PauseJob(Patiently().get(), request, &paused);
  EXPECT_TRUE(status.ok()) << status.error_message();
}

void Cluster::Resume(const std::string& job) {
  lemo::v1::ResumeJobRequest request;
  request.set_name(job);
  lemo::v1::Job resumed;
  const grpc::Status status = jobs_->ResumeJob(Patiently().get(), request, &resumed);
  EXPECT_TRUE(status.ok()) << status.error_message();
}

std::vector<lemo::v1::JobEvent> Cluster::Watch(
    const std::string& job, const std::function<bool(const lemo::v1::JobEvent&)>& enough) {
  std::vector<lemo::v1::JobEvent> events;
  const auto context = Patiently();
  lemo::v1::WatchJobRequest request;
  request.set_name(job);
  const auto reader = jobs_->WatchJob(context.get(), request);
  for (lemo::v1::WatchJobResponse response; reader->Read(&response);) {
    if (!response.has_event()) continue;
    events.push_back(response.event());
    if (!enough(events.back())) continue;
    context->TryCancel();
    reader->Finish();
    return events;
  }
  const grpc::Status status = reader->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message() << "\n" << Get(job).ShortDebugString();
  return events;
}

lemo::v1::Job Cluster::Finish(const std::string& job) {
  Watch(job, [](const lemo::v1::JobEvent&) { return false; });
  return Get(job);
}

std::string Cluster::Log(const std::string& job, int rank, int attempt) {
  const auto context = Patiently();
  lemo::v1::ReadLogsRequest request;
  request.set_name(job);
  request.set_rank(rank);
  request.set_attempt(attempt);
  const auto reader = jobs_->ReadLogs(context.get(), request);
  std::string log;
  for (lemo::v1::LogChunk chunk; reader->Read(&chunk);) log += chunk.data();
  reader->Finish();
  return log;
}

}  // namespace lemo::agent
