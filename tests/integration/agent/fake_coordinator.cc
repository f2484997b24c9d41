#include "tests/integration/agent/fake_coordinator.h"

#include <gtest/gtest.h>

#include "common/files.h"

namespace lemo::agent {

using lemo::v1::AgentMessage;
using lemo::v1::CoordinatorMessage;

struct FakeCoordinator::Services : lemo::v1::WorkerService::Service,
                                   lemo::v1::FileService::Service,
                                   lemo::v1::ModelService::Service,
                                   lemo::v1::JobService::Service {
  explicit Services(FakeCoordinator* fake) : fake(fake) {}

  grpc::Status Connect(grpc::ServerContext* context, Stream* stream) override {
    return fake->Serve(context, stream);
  }

  grpc::Status UploadArtifact(grpc::ServerContext*,
                              grpc::ServerReader<lemo::v1::UploadArtifactRequest>* reader,
                              lemo::v1::Artifact* stored) override {
    lemo::v1::UploadArtifactStart start;
    std::string bytes, sha256;
    for (lemo::v1::UploadArtifactRequest request; reader->Read(&request);) {
      if (request.has_start()) start = request.start();
      if (!request.has_chunk()) continue;
      if (request.chunk().offset() != static_cast<int64_t>(bytes.size())) {
        return {grpc::StatusCode::INVALID_ARGUMENT, "offset"};
      }
      bytes += request.chunk().data();
      sha256 = request.chunk().sha256();
    }
    std::lock_guard<std::mutex> lock(fake->mutex_);
    if (fake->manners_.refused_uploads > 0) {
      --fake->manners_.refused_uploads;
      return {grpc::StatusCode::UNAVAILABLE, "not now"};
    }
    const std::string actual = Sha256Hex(bytes);
    if (actual != sha256 || actual != start.artifact().sha256() ||
        start.artifact().bytes() != static_cast<int64_t>(bytes.size())) {
      return {grpc::StatusCode::INVALID_ARGUMENT, "checksum"};
    }
    *stored = start.artifact();
    fake->attempts_[{start.id().job(), start.id().attempt()}].uploads[stored->path()] = bytes;
    return grpc::Status::OK;
  }

  grpc::Status DownloadFile(grpc::ServerContext*, const lemo::v1::DownloadFileRequest* request,
                            grpc::ServerWriter<lemo::v1::DataChunk>* writer) override {
    return Send(request->name(), request->offset(), writer);
  }

  grpc::Status DownloadModelFile(grpc::ServerContext* context,
                                 const lemo::v1::DownloadModelFileRequest* request,
                                 grpc::ServerWriter<lemo::v1::DataChunk>* writer) override {
    {
      std::unique_lock<std::mutex> lock(fake->mutex_);
      if (fake->manners_.stall_models) {
        ++fake->download_calls_;
        fake->changed_.notify_all();
        while (!context->IsCancelled()) {
          fake->changed_.wait_for(lock, std::chrono::milliseconds(10));
        }
        return grpc::Status::CANCELLED;
      }
    }
    return Send(request->name() + "/" + request->path(), request->offset(), writer);
  }

  grpc::Status Send(const std::string& name, int64_t from,
                    grpc::ServerWriter<lemo::v1::DataChunk>* writer) {
    std::string bytes;
    bool cut = false;
    {
      std::lock_guard<std::mutex> lock(fake->mutex_);
      ++fake->download_calls_;
      fake->changed_.notify_all();
      const auto found = fake->files_.find(name);
      if (found == fake->files_.end()) return {grpc::StatusCode::NOT_FOUND, "no such file"};
      bytes = found->second;
      if (fake->manners_.cut_downloads > 0) {
        --fake->manners_.cut_downloads;
        cut = true;
      }
    }
    const size_t end = cut ? bytes.size() / 2 : bytes.size();
    constexpr size_t kChunk = 1000;
    for (size_t offset = static_cast<size_t>(from); offset < end; offset += kChunk) {
      lemo::v1::DataChunk chunk;
      chunk.set_offset(static_cast<int64_t>(offset));
      chunk.set_data(bytes.substr(offset, std::min(kChunk, end - offset)));
      writer->Write(chunk);
    }
    return cut ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "cut") : grpc::Status::OK;
  }

  grpc::Status GetJob(grpc::ServerContext*, const lemo::v1::GetJobRequest* request,
                      lemo::v1::Job* job) override {
    std::lock_guard<std::mutex> lock(fake->mutex_);
    const auto found = fake->states_.find(request->name());
    if (found == fake->states_.end()) return {grpc::StatusCode::NOT_FOUND, "no such job"};
    job->set_name(request->name());
    job->set_state(found->second);
    return grpc::Status::OK;
  }

  FakeCoordinator* fake;
};

FakeCoordinator::FakeCoordinator() : services_(std::make_unique<Services>(this)) {
  Listen("127.0.0.1:0");
}

FakeCoordinator::~FakeCoordinator() { GoAway(); }

void FakeCoordinator::Listen(const std::string& address) {
  int port = 0;
  // The port is this test's own: nobody else's socket may share it.
  grpc::ServerBuilder builder;
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(static_cast<lemo::v1::WorkerService::Service*>(services_.get()));
  builder.RegisterService(static_cast<lemo::v1::FileService::Service*>(services_.get()));
  builder.RegisterService(static_cast<lemo::v1::ModelService::Service*>(services_.get()));
  builder.RegisterService(static_cast<lemo::v1::JobService::Service*>(services_.get()));
  server_ = builder.BuildAndStart();
  ASSERT_NE(server_, nullptr);
  address_ = "127.0.0.1:" + std::to_string(port);
}

void FakeCoordinator::GoAway() {
  if (server_ == nullptr) return;
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
  server_ = nullptr;
}

void FakeCoordinator::ComeBack() { Listen(address_); }

void FakeCoordinator::Set(const std::function<void(Manners*)>& change) {
  std::lock_guard<std::mutex> lock(mutex_);
  change(&manners_);
  changed_.notify_all();
}

void FakeCoordinator::Cut() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (context_ != nullptr) context_->TryCancel();
}

lemo::v1::InputFile FakeCoordinator::AddFile(const std::string& name, const std::string& bytes) {
  ReplaceFile(name, bytes);
  lemo::v1::InputFile file;
  file.set_name(name);
  file.set_bytes(static_cast<int64_t>(bytes.size()));
  file.set_sha256(Sha256Hex(bytes));
  return file;
}

lemo::v1::ModelFile FakeCoordinator::AddModelFile(const std::string& model, const std::string& path,
                                                  const std::string& bytes) {
  const lemo::v1::InputFile added = AddFile(model + "/" + path, bytes);
  lemo::v1::ModelFile file;
  file.set_path(path);
  file.set_bytes(added.bytes());
  file.set_sha256(added.sha256());
  return file;
}

void FakeCoordinator::ReplaceFile(const std::string& name, const std::string& bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  files_[name] = bytes;
}

void FakeCoordinator::SetJobState(const std::string& job, lemo::v1::Job::State state) {
  std::lock_guard<std::mutex> lock(mutex_);
  states_[job] = state;
}

void FakeCoordinator::Assign(const lemo::v1::Assignment& assignment) {
  std::lock_guard<std::mutex> lock(mutex_);
  attempts_[{assignment.id().job(), assignment.id().attempt()}];
  states_.emplace(assignment.id().job(), lemo::v1::Job::RUNNING);
  if (stream_ == nullptr) {
    unsent_.push_back(assignment);
    return;
  }
  CoordinatorMessage message;
  *message.mutable_assign() = assignment;
  stream_->Write(message);
}

void FakeCoordinator::Signal(const lemo::v1::AttemptId& id,
                             lemo::v1::AttemptSignal::Signal signal) {
  std::lock_guard<std::mutex> lock(mutex_);
  CoordinatorMessage message;
  *message.mutable_signal()->mutable_id() = id;
  message.mutable_signal()->set_signal(signal);
  if (stream_ != nullptr) stream_->Write(message);
}

void FakeCoordinator::SetBudget(const lemo::v1::AttemptId& id, int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  CoordinatorMessage message;
  *message.mutable_budget()->mutable_id() = id;
  message.mutable_budget()->set_bytes(bytes);
  if (stream_ != nullptr) stream_->Write(message);
}

void FakeCoordinator::SetNotCurrent(const Key& key) {
  std::lock_guard<std::mutex> lock(mutex_);
  attempts_[key].current = false;
}

grpc::Status FakeCoordinator::Serve(grpc::ServerContext* context, Stream* stream) {
  AgentMessage message;
  if (!stream->Read(&message) || !message.has_hello()) {
    return {grpc::StatusCode::INVALID_ARGUMENT, "no hello"};
  }
  {
    std::unique_lock<std::mutex> lock(mutex_);
    hellos_.push_back(message.hello());
    changed_.notify_all();
    if (!manners_.welcome) return {grpc::StatusCode::UNAVAILABLE, "not now"};
    CoordinatorMessage answer;
    lemo::v1::Welcome& welcome = *answer.mutable_welcome();
    welcome.set_lease_seconds(manners_.lease_seconds);
    welcome.set_heartbeat_seconds(manners_.heartbeat_seconds);
    for (const lemo::v1::AttemptReport& report : message.hello().attempts()) {
      const auto known = attempts_.find({report.id().job(), report.id().attempt()});
      if (known == attempts_.end() || !known->second.current) continue;
      lemo::v1::EventsAcknowledged& attempt = *welcome.add_attempts();
      *attempt.mutable_id() = report.id();
      attempt.set_through_sequence(static_cast<int64_t>(known->second.events.size()));
    }
    stream->Write(answer);
    for (const lemo::v1::Assignment& assignment : unsent_) {
      CoordinatorMessage assign;
      *assign.mutable_assign() = assignment;
      stream->Write(assign);
    }
    unsent_.clear();
    stream_ = stream;
    context_ = context;
  }
  while (stream->Read(&message)) {
    std::lock_guard<std::mutex> lock(mutex_);
    Answer(message, stream);
    changed_.notify_all();
  }
  std::lock_guard<std::mutex> lock(mutex_);
  if (stream_ == stream) {
    stream_ = nullptr;
    context_ = nullptr;
    changed_.notify_all();
  }
  return grpc::Status::OK;
}

void FakeCoordinator::Answer(const AgentMessage& message, Stream* stream) {
  CoordinatorMessage answer;
  switch (message.message_case()) {
    case AgentMessage::kHeartbeat:
      if (!manners_.renew) return;
      answer.mutable_lease()->set_number(message.heartbeat().number());
      break;
    case AgentMessage::kStarted:
      ++attempts_[{message.started().id().job(), message.started().id().attempt()}].started;
      return;
    case AgentMessage::kEvents: {
      if (!manners_.store) return;
      const lemo::v1::AttemptEvents& batch = message.events();
      KnownAttempt& attempt = attempts_[{batch.id().job(), batch.id().attempt()}];
      int64_t sequence = batch.first_sequence();
      if (sequence != static_cast<int64_t>(attempt.events.size()) + 1) {
        attempt.faults.push_back("events from " + std::to_string(sequence) + " when " +
                                 std::to_string(attempt.events.size()) + " are stored");
      }
      for (const lemo::v1::RunEvent& event : batch.events()) {
        if (event.sequence() != sequence++) attempt.faults.push_back("a wrong sequence");
        attempt.events.push_back(event);
      }
      *answer.mutable_acknowledged()->mutable_id() = batch.id();
      answer.mutable_acknowledged()->set_through_sequence(
          static_cast<int64_t>(attempt.events.size()));
      break;
    }
    case AgentMessage::kEnded: {
      KnownAttempt& attempt =
          attempts_[{message.ended().id().job(), message.ended().id().attempt()}];
      if (message.ended().last_sequence() > static_cast<int64_t>(attempt.events.size())) return;
      attempt.ended = message.ended();
      if (!manners_.forget) return;
      attempt.current = false;
      *answer.mutable_forgotten()->mutable_id() = message.ended().id();
      break;
    }
    case AgentMessage::kLog: {
      const lemo::v1::LogChunk& chunk = message.log().chunk();
      std::string& log =
          attempts_[{message.log().id().job(), message.log().id().attempt()}].logs[chunk.rank()];
      if (chunk.offset() == static_cast<int64_t>(log.size())) log += chunk.data();
      return;
    }
    case AgentMessage::kDrain:
      drained_ = true;
      return;
    default:
      return;
  }
  stream->Write(answer);
}

bool FakeCoordinator::Wait(std::unique_lock<std::mutex>& lock, const std::function<bool()>& holds) {
  return changed_.wait_for(lock, std::chrono::seconds(30), holds);
}

bool FakeCoordinator::WaitForLoss() {
  std::unique_lock<std::mutex> lock(mutex_);
  return Wait(lock, [this] { return stream_ == nullptr; });
}

bool FakeCoordinator::WaitFor(const Key& key,
                              const std::function<bool(const KnownAttempt&)>& holds) {
  std::unique_lock<std::mutex> lock(mutex_);
  const bool held = Wait(lock, [&] { return holds(attempts_[key]); });
  const KnownAttempt& attempt = attempts_[key];
  EXPECT_TRUE(held) << key.first << " attempt " << key.second << ": " << attempt.events.size()
                    << " events, ended: "
                    << (attempt.ended ? attempt.ended->ShortDebugString() : "no");
  return held;
}

bool FakeCoordinator::WaitForSteps(const Key& key, int steps) {
  return WaitFor(key, [steps](const KnownAttempt& attempt) {
    return !attempt.events.empty() && attempt.events.back().step().step() >= steps;
  });
}

bool FakeCoordinator::WaitForEnd(const Key& key) {
  return WaitFor(key, [](const KnownAttempt& attempt) { return attempt.ended.has_value(); });
}

lemo::v1::Hello FakeCoordinator::WaitForHello(int count) {
  std::unique_lock<std::mutex> lock(mutex_);
  EXPECT_TRUE(Wait(lock, [&] { return static_cast<int>(hellos_.size()) >= count; }));
  return hellos_.empty() ? lemo::v1::Hello() : hellos_.back();
}

bool FakeCoordinator::WaitForDrain() {
  std::unique_lock<std::mutex> lock(mutex_);
  return Wait(lock, [&] { return drained_; });
}

bool FakeCoordinator::WaitForDownloads(int calls) {
  std::unique_lock<std::mutex> lock(mutex_);
  return Wait(lock, [&] { return download_calls_ >= calls; });
}

int FakeCoordinator::hellos() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int>(hellos_.size());
}

int FakeCoordinator::download_calls() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return download_calls_;
}

KnownAttempt FakeCoordinator::Get(const Key& key) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = attempts_.find(key);
  return found == attempts_.end() ? KnownAttempt{} : found->second;
}

}  // namespace lemo::agent
