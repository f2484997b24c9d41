#include "tests/integration/api/coordinator.h"

#include <sys/stat.h>

#include <csignal>
#include <thread>

#include "common/files.h"
#include "tests/support/service_calls.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;
using train::Process;

}  // namespace

bool Comes(const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
  return true;
}

std::unique_ptr<grpc::ClientContext> Patiently() {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(std::chrono::system_clock::now() + kPatience);
  context->set_wait_for_ready(true);
  return context;
}

Agent::Agent(const std::shared_ptr<grpc::Channel>& channel)
    : stub_(lemo::v1::WorkerService::NewStub(channel)), stream_(stub_->Connect(context_.get())) {}

Agent::~Agent() {
  if (finished_) return;
  context_->TryCancel();
  stream_->Finish();
}

void Agent::Hello(const std::string& worker, const std::vector<lemo::v1::AttemptId>& attempts) {
  lemo::v1::AgentMessage message;
  lemo::v1::Hello& hello = *message.mutable_hello();
  hello.set_worker("workers/" + worker);
  hello.add_devices()->set_kind(lemo::v1::Device::CPU);
  hello.add_model_paths(LEMO_SOURCE_DIR "/tests/fixtures/stories260k");
  for (const auto& id : attempts) *hello.add_attempts()->mutable_id() = id;
  Say(message);
}

lemo::v1::CoordinatorMessage Agent::Hear(
    const std::function<bool(const lemo::v1::CoordinatorMessage&)>& wanted) {
  lemo::v1::CoordinatorMessage message;
  while (stream_->Read(&message)) {
    if (wanted(message)) return message;
  }
  return {};
}

grpc::Status Agent::Finish() {
  finished_ = true;
  stream_->WritesDone();
  lemo::v1::CoordinatorMessage message;
  while (stream_->Read(&message)) {
  }
  return stream_->Finish();
}

CoordinatorTest::CoordinatorTest() {
  std::string name = testing::TempDir() + "/apiXXXXXX";
  scratch_ = ::mkdtemp(name.data());
  ::chmod(scratch_.c_str(), 0755);
  train_ = (scratch_ / "yes").string();
  // A file `slow` makes it take for ever.
  EXPECT_TRUE(WriteFileAtomic(train_, "#!/bin/sh\n[ -e " + (scratch_ / "slow").string() +
                                          " ] && exec sleep 1000\nexit 0\n")
                  .ok());
  ::chmod(train_.c_str(), 0755);
}

CoordinatorTest::~CoordinatorTest() {
  process_.reset();
  fs::remove_all(scratch_);
}

void CoordinatorTest::Start(const std::string& dir, std::vector<std::string> more) {
  std::vector<std::string> args = {
      "--dir", (scratch_ / dir).string(), "--listen", address_, "--train", train_};
  args.insert(args.end(), more.begin(), more.end());
  process_ = std::make_unique<Process>(LEMO_COORDINATOR_BINARY, args, train::ProcessOptions{});
  const auto line = process_->NextLine(Process::Clock::now() + kPatience);
  const std::string kSays = "listening on ";
  ASSERT_TRUE(line && line->rfind(kSays, 0) == 0) << process_->Wait() << process_->Errors();
  address_ = line->substr(kSays.size());
  const auto channel = Dial();
  jobs_ = lemo::v1::JobService::NewStub(channel);
  files_ = lemo::v1::FileService::NewStub(channel);
  models_ = lemo::v1::ModelService::NewStub(channel);
  admin_ = lemo::v1::AdminService::NewStub(channel);
  workers_ = lemo::v1::WorkerService::NewStub(channel);
}

int CoordinatorTest::Stop() {
  // An idle connection would be waited for.
  jobs_.reset();
  files_.reset();
  models_.reset();
  admin_.reset();
  workers_.reset();
  process_->Signal(SIGTERM);
  return process_->Wait();
}

CoordinatorTest::Ending CoordinatorTest::StartToFail(const fs::path& dir,
                                                     train::ProcessOptions options) {
  Process process(LEMO_COORDINATOR_BINARY,
                  {"--dir", dir.string(), "--listen", "127.0.0.1:0", "--train", train_}, options);
  // One that comes up after all says so.
  if (const auto line = process.NextLine(Process::Clock::now() + kPatience)) {
    return {-1, *line};
  }
  const int code = process.Wait();
  return {code, process.Errors()};
}

CoordinatorTest::Ending CoordinatorTest::Run(const std::string& program,
                                             const std::vector<std::string>& args,
                                             std::string* output) {
  Process process(program, args, {});
  while (const auto line = process.NextLine(Process::Clock::now() + kPatience)) {
    if (output != nullptr) *output += *line + "\n";
  }
  const int code = process.Wait();
  return {code, process.Errors()};
}

std::shared_ptr<grpc::Channel> CoordinatorTest::Dial() const {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 200);
  arguments.SetMaxSendMessageSize(-1);
  return grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), arguments);
}

grpc::Status CoordinatorTest::TryUpload(const std::vector<lemo::v1::UploadFileRequest>& messages,
                                        lemo::v1::File* file) {
  const auto context = Patiently();
  const auto writer = files_->UploadFile(context.get(), file);
  for (const auto& message : messages) {
    if (!writer->Write(message)) break;
  }
  writer->WritesDone();
  return writer->Finish();
}

std::string CoordinatorTest::Upload(const std::string& data, const std::string& upload_id) {
  std::vector<lemo::v1::UploadFileRequest> messages(2);
  lemo::v1::UploadStart& start = *messages[0].mutable_start();
  start.set_upload_id(upload_id.empty() ? Sha256Hex(data) : upload_id);
  start.set_display_name("data.jsonl");
  start.set_bytes(static_cast<int64_t>(data.size()));
  start.set_sha256(Sha256Hex(data));
  messages[1].mutable_chunk()->set_data(data);
  lemo::v1::File file;
  const grpc::Status status = TryUpload(messages, &file);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return file.name();
}

void CoordinatorTest::AddModel() {
  lemo::v1::AddModelRequest request;
  request.set_model_id("m");
  request.set_path(LEMO_SOURCE_DIR "/tests/fixtures/stories260k");
  lemo::v1::Model model;
  const grpc::Status status = models_->AddModel(Patiently().get(), request, &model);
  ASSERT_TRUE(status.ok()) << status.error_message();
}

lemo::v1::JobSpec CoordinatorTest::Spec(const std::string& file) const {
  lemo::v1::JobSpec spec;
  spec.mutable_run()->mutable_model()->set_path("models/m");
  spec.mutable_run()->mutable_data()->add_train()->set_path(file);
  spec.mutable_run()->mutable_tuner()->mutable_lora();
  spec.mutable_run()->mutable_train()->set_steps(1);
  spec.mutable_restart()->set_backoff_seconds(0.01);
  return spec;
}

lemo::v1::Job CoordinatorTest::Submit(const lemo::v1::JobSpec& spec) {
  return service_calls::SubmitJob(*jobs_, Patiently().get(), spec);
}

lemo::v1::Job CoordinatorTest::Get(const std::string& name) {
  return service_calls::GetJob(*jobs_, Patiently().get(), name);
}

lemo::v1::Job CoordinatorTest::Await(const std::string& name, lemo::v1::Job::State state) {
  lemo::v1::Job job;
  EXPECT_TRUE(Comes([&] { return (job = Get(name)).state() == state; })) << job.ShortDebugString();
  return job;
}

namespace {

template <typename Reader>
std::string ReadContent(Reader& reader) {
  std::string data, sha256;
  lemo::v1::DataChunk chunk;
  while (reader.Read(&chunk)) {
    EXPECT_EQ(chunk.offset(), static_cast<int64_t>(data.size()));
    data += chunk.data();
    sha256 = chunk.sha256();
  }
  const grpc::Status status = reader.Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(sha256, Sha256Hex(data));
  return data;
}

}  // namespace

std::string CoordinatorTest::Download(const std::string& file) {
  lemo::v1::DownloadFileRequest request;
  request.set_name(file);
  const auto context = Patiently();
  return ReadContent(*files_->DownloadFile(context.get(), request));
}

std::string CoordinatorTest::DownloadArtifact(const std::string& job, const std::string& path) {
  lemo::v1::DownloadArtifactRequest request;
  request.set_name(job);
  request.set_path(path);
  const auto context = Patiently();
  return ReadContent(*jobs_->DownloadArtifact(context.get(), request));
}

CoordinatorTest::Placed CoordinatorTest::Place() {
  AddModel();
  Placed placed;
  placed.agent = std::make_unique<Agent>(Dial());
  placed.agent->Hello("a");
  const lemo::v1::Job job = Submit(Spec(Upload("{\"text\": \"abc\"}\n")));
  const auto assigned =
      placed.agent->Hear([](const auto& message) { return message.has_assign(); });
  EXPECT_EQ(assigned.assign().id().job(), job.name());
  placed.id = assigned.assign().id();
  return placed;
}

grpc::Status CoordinatorTest::PutResult(const lemo::v1::AttemptId& id, const std::string& path,
                                        const std::string& data, lemo::v1::Artifact* artifact) {
  const auto context = Patiently();
  lemo::v1::Artifact answer;
  const auto writer = workers_->UploadArtifact(context.get(), &answer);
  lemo::v1::UploadArtifactRequest start, chunk;
  *start.mutable_start()->mutable_id() = id;
  artifact->set_path(path);
  artifact->set_bytes(static_cast<int64_t>(data.size()));
  artifact->set_sha256(Sha256Hex(data));
  *start.mutable_start()->mutable_artifact() = *artifact;
  chunk.mutable_chunk()->set_data(data);
  if (writer->Write(start)) writer->Write(chunk);
  writer->WritesDone();
  return writer->Finish();
}

lemo::v1::AgentMessage CoordinatorTest::Started(const lemo::v1::AttemptId& id) {
  lemo::v1::AgentMessage message;
  *message.mutable_started()->mutable_id() = id;
  return message;
}

lemo::v1::AgentMessage CoordinatorTest::Events(const lemo::v1::AttemptId& id, int64_t first,
                                               int count, const std::string& text) {
  lemo::v1::AgentMessage message;
  *message.mutable_events()->mutable_id() = id;
  message.mutable_events()->set_first_sequence(first);
  for (int i = 0; i < count; ++i) {
    message.mutable_events()->add_events()->mutable_phase()->set_detail(text);
  }
  return message;
}

lemo::v1::AgentMessage CoordinatorTest::Succeeded(
    const lemo::v1::AttemptId& id, int64_t last_sequence,
    const std::vector<lemo::v1::Artifact>& artifacts) {
  lemo::v1::AgentMessage message;
  lemo::v1::AttemptEnded& ended = *message.mutable_ended();
  *ended.mutable_id() = id;
  ended.set_outcome(lemo::v1::AttemptEnded::SUCCEEDED);
  ended.set_last_sequence(last_sequence);
  for (const auto& artifact : artifacts) *ended.add_artifacts() = artifact;
  return message;
}

void CoordinatorTest::Succeed(const Placed& placed, const std::string& data) {
  placed.agent->Say(Started(placed.id));
  lemo::v1::AgentMessage result;
  *result.mutable_events()->mutable_id() = placed.id;
  result.mutable_events()->set_first_sequence(1);
  result.mutable_events()->add_events()->mutable_result()->set_steps(1);
  placed.agent->Say(result);
  lemo::v1::Artifact artifact;
  const grpc::Status put = PutResult(placed.id, "adapter/weights", data, &artifact);
  ASSERT_TRUE(put.ok()) << put.error_message();
  placed.agent->Say(Succeeded(placed.id, 1, {artifact}));
  Await(placed.id.job(), lemo::v1::Job::SUCCEEDED);
}

}  // namespace lemo::coordinator
