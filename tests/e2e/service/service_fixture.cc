#include "tests/e2e/service/service_fixture.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <utility>

#include "common/files.h"
#include "common/message_json.h"
#include "tests/support/service_calls.h"

namespace lemo::coordinator {
namespace {

constexpr std::chrono::minutes kPatience{2};

}  // namespace

std::unique_ptr<grpc::ClientContext> Patiently() {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(std::chrono::system_clock::now() + kPatience);
  context->set_wait_for_ready(true);
  return context;
}

Service::Service(std::vector<std::string> coordinator_args)
    : coordinator_args_(std::move(coordinator_args)) {
  StartCoordinator();
}

void Service::StartCoordinator() {
  std::vector<std::string> args = {"--dir",    (workspace_.path() / "coordinator").string(),
                                   "--listen", address_,
                                   "--train",  train::Workspace::Program()};
  args.insert(args.end(), coordinator_args_.begin(), coordinator_args_.end());
  coordinator_ = std::make_unique<train::Process>(LEMO_COORDINATOR_BINARY, args,
                                                  train::ProcessOptions{workspace_.path(), {}, {}});
  const auto line = coordinator_->NextLine(train::Process::Clock::now() + kPatience);
  const std::string kSays = "listening on ";
  ASSERT_TRUE(line && line->rfind(kSays, 0) == 0) << coordinator_->Wait() << coordinator_->Errors();
  address_ = line->substr(kSays.size());
  if (channel_) return;
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 200);
  channel_ = grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), arguments);
  jobs_ = lemo::v1::JobService::NewStub(channel_);
  files_ = lemo::v1::FileService::NewStub(channel_);
  models_ = lemo::v1::ModelService::NewStub(channel_);
  cluster_ = lemo::v1::ClusterService::NewStub(channel_);
}

void Service::KillCoordinator() {
  coordinator_->Signal(SIGKILL);
  coordinator_->Wait();
}

int Service::StopCoordinator() {
  coordinator_->Signal(SIGTERM);
  return coordinator_->Wait();
}

std::filesystem::path Service::AgentDir(const std::string& name) const {
  return workspace_.path() / ("agent-" + name);
}

train::Process& Service::StartAgent(const std::string& name, std::vector<std::string> args) {
  const std::vector<std::pair<std::string, std::string>> defaults = {
      {"--coordinator", address_},
      {"--dir", AgentDir(name).string()},
      {"--train", train::Workspace::Program()},
      {"--cuda", "none"},
      {"--model-root", train::Workspace::Model().parent_path().string()}};
  std::vector<std::string> all = args;
  for (const auto& [flag, value] : defaults) {
    if (std::find(args.begin(), args.end(), flag) == args.end()) {
      all.insert(all.end(), {flag, value});
    }
  }
  auto& agent = agents_[name];
  std::filesystem::create_directories(AgentDir(name));
  agent = std::make_unique<train::Process>(LEMO_WORKER_BINARY, all,
                                           train::ProcessOptions{AgentDir(name), {}, {}});
  return *agent;
}

void Service::KillAgent(const std::string& name) {
  agents_.at(name)->Signal(SIGKILL);
  agents_.at(name)->Wait();
}

std::string Service::Upload(const std::string& file) {
  return service_calls::UploadFile(*files_, Patiently().get(), file,
                                   train::ReadAll(workspace_.path() / file));
}

void Service::PutInputs(const std::string& model_path) {
  for (const char* file : {"train.jsonl", "eval.jsonl"}) names_[file] = Upload(file);
  model_path_ = model_path;
  const auto context = Patiently();
  lemo::v1::AddModelRequest request;
  request.set_model_id("stories260k");
  request.set_path(model_path);
  lemo::v1::Model model;
  const grpc::Status status = models_->AddModel(context.get(), request, &model);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(model.family(), "llama");
  EXPECT_GT(model.parameters(), 200'000);
}

lemo::v1::JobSpec Service::Spec() const {
  lemo::v1::JobSpec spec;
  lemo::v1::RunSpec& run = *spec.mutable_run();
  run.mutable_model()->set_path("models/stories260k");
  run.mutable_model()->set_compute_type("float32");
  run.mutable_data()->add_train()->set_path(names_.at("train.jsonl"));
  run.mutable_data()->add_eval()->set_path(names_.at("eval.jsonl"));
  run.mutable_data()->set_max_length(64);
  lemo::v1::LoraSpec& lora = *run.mutable_tuner()->mutable_lora();
  lora.set_rank(4);
  lora.set_alpha(8);
  lora.add_targets("q_proj");
  lora.add_targets("v_proj");
  run.mutable_train()->set_steps(4);
  run.mutable_train()->set_batch_sequences(2);
  run.mutable_train()->set_learning_rate(0.003);
  run.mutable_train()->set_seed(7);
  return spec;
}

lemo::v1::Job Service::Submit(const lemo::v1::JobSpec& spec) {
  return service_calls::SubmitJob(*jobs_, Patiently().get(), spec);
}

lemo::v1::Job Service::Get(const std::string& name) {
  return service_calls::GetJob(*jobs_, Patiently().get(), name);
}

std::vector<lemo::v1::JobEvent> Service::Watch(
    const std::string& name, const std::function<bool(const lemo::v1::JobEvent&)>& enough) {
  std::vector<lemo::v1::JobEvent> events;
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (std::chrono::steady_clock::now() < deadline) {
    const auto context = Patiently();
    lemo::v1::WatchJobRequest request;
    request.set_name(name);
    request.set_after_sequence(events.empty() ? 0 : events.back().sequence());
    const auto reader = jobs_->WatchJob(context.get(), request);
    lemo::v1::WatchJobResponse response;
    while (reader->Read(&response)) {
      if (!response.has_event()) continue;
      EXPECT_EQ(response.event().sequence(), events.empty() ? 1 : events.back().sequence() + 1);
      events.push_back(response.event());
      if (!enough(events.back())) continue;
      context->TryCancel();
      reader->Finish();
      return events;
    }
    const grpc::Status status = reader->Finish();
    if (status.ok()) return events;
    // The coordinator went away; a watcher goes on where it was.
    if (status.error_code() != grpc::StatusCode::UNAVAILABLE &&
        status.error_code() != grpc::StatusCode::CANCELLED) {
      ADD_FAILURE() << status.error_code() << ": " << status.error_message();
      return events;
    }
  }
  ADD_FAILURE() << name << " did not come so far: " << Get(name).ShortDebugString();
  return events;
}

lemo::v1::Job Service::Finish(const std::string& name) {
  Watch(name, [](const lemo::v1::JobEvent&) { return false; });
  return Get(name);
}

std::string Service::DownloadedSha256(const std::string& name, const std::string& path) {
  const auto context = Patiently();
  lemo::v1::DownloadArtifactRequest request;
  request.set_name(name);
  request.set_path(path);
  const auto reader = jobs_->DownloadArtifact(context.get(), request);
  std::string data, sha256;
  for (lemo::v1::DataChunk chunk; reader->Read(&chunk); chunk.Clear()) {
    data += chunk.data();
    if (!chunk.sha256().empty()) sha256 = chunk.sha256();
  }
  const grpc::Status status = reader->Finish();
  EXPECT_TRUE(status.ok()) << path << ": " << status.error_message();
  EXPECT_EQ(Sha256Hex(data), sha256);
  return Sha256Hex(data);
}

train::Outcome Service::RunUndisturbed(const lemo::v1::JobSpec& spec) {
  lemo::v1::RunSpec run = spec.run();
  run.mutable_model()->set_path(model_path_);
  run.mutable_data()->mutable_train(0)->set_path("train.jsonl");
  run.mutable_data()->mutable_eval(0)->set_path("eval.jsonl");
  run.mutable_output()->set_dir("undisturbed");
  run.set_device("cpu");
  std::filesystem::remove_all(workspace_.path() / "undisturbed");
  train::Outcome outcome = workspace_.Run(nlohmann::json::parse(MessageToJson(run, {}).dump()));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.out << outcome.err;
  return outcome;
}

std::string Service::UndisturbedSha256(const lemo::v1::JobSpec& spec) {
  RunUndisturbed(spec);
  return Sha256Hex(
      train::ReadAll(workspace_.path() / "undisturbed/adapter/adapter_model.safetensors"));
}

}  // namespace lemo::coordinator
