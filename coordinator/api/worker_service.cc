#include "coordinator/api/worker_service.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "coordinator/api/errors.h"
#include "coordinator/api/names.h"

namespace lemo::coordinator {
namespace {

// Messages that wait for an agent which does not read; one that has so many is cut off and dials
// anew.
constexpr size_t kOutboxLimit = 10'000;
constexpr std::chrono::seconds kLastWrite{1};

// Largest messages: a hello, the end of an attempt, and an event, which watchers must be able to
// receive. Agents keep to the last one themselves.
constexpr size_t kHelloBytes = size_t{256} << 10;
constexpr size_t kEndBytes = size_t{1} << 20;
constexpr size_t kEventBytes = (size_t{1} << 20) + (size_t{16} << 10);
constexpr int kResultFiles = 1000;
constexpr int64_t kFileLimit = int64_t{1} << 40;
// What may wait for the cluster of one agent's; then no more is read from it.
constexpr size_t kInflowMessages = 256, kInflowBytes = size_t{8} << 20;

// What an agent has said that the cluster has not taken yet.
class Inflow {
 public:
  // Waits until there is room. False: the call is over.
  bool Take(size_t bytes, grpc::ServerContext* context) {
    std::unique_lock lock(mutex_);
    const auto room = [this] { return messages_ < kInflowMessages && bytes_ < kInflowBytes; };
    while (!changed_.wait_for(lock, std::chrono::milliseconds(200), room)) {
      if (context->IsCancelled()) return false;
    }
    ++messages_;
    bytes_ += bytes;
    return true;
  }
  void Give(size_t bytes) {
    {
      const std::lock_guard lock(mutex_);
      --messages_;
      bytes_ -= bytes;
    }
    changed_.notify_one();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t messages_ = 0, bytes_ = 0;
};

// In the spelling under which content is kept and looked for.
void LowerChecksums(google::protobuf::RepeatedPtrField<lemo::v1::Artifact>* artifacts) {
  for (lemo::v1::Artifact& artifact : *artifacts) {
    artifact.set_sha256(absl::AsciiStrToLower(artifact.sha256()));
  }
}

// Bounds what is kept and told on.
absl::Status CheckSize(const lemo::v1::AgentMessage& message) {
  if (message.has_ended() && message.ended().ByteSizeLong() > kEndBytes) {
    return absl::InvalidArgumentError(absl::StrCat("ended: more than ", kEndBytes, " bytes"));
  }
  if (message.has_checkpoint() && message.checkpoint().ByteSizeLong() > kEndBytes) {
    return absl::InvalidArgumentError(absl::StrCat("checkpoint: more than ", kEndBytes, " bytes"));
  }
  for (const lemo::v1::RunEvent& event : message.events().events()) {
    if (event.ByteSizeLong() > kEventBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("events: one of more than ", kEventBytes, " bytes"));
    }
  }
  return absl::OkStatus();
}

// The writing end: a queue that the cluster fills and a thread empties.
class Outbox final : public AgentLink {
 public:
  Outbox(grpc::ServerContext* context, WorkerServiceImpl::AgentStream* stream)
      : context_(context), stream_(stream), writer_([this] { Write(); }) {}

  void Send(const lemo::v1::CoordinatorMessage& message) override {
    bool full = false;
    {
      const std::lock_guard lock(mutex_);
      if (closed_) return;
      queue_.push_back(message);
      full = queue_.size() > kOutboxLimit;
    }
    changed_.notify_one();
    if (full) Close(absl::ResourceExhaustedError("the agent does not read"));
  }

  void Close(const absl::Status& reason) override {
    const std::lock_guard lock(mutex_);
    if (closed_) return;
    closed_ = true;
    reason_ = reason;
    // The only way to wake a thread that waits in Read.
    if (stream_ != nullptr) context_->TryCancel();
    changed_.notify_one();
  }

  // No more of the stream is used once this returns. Why the stream ends.
  absl::Status Finish() {
    {
      std::unique_lock lock(mutex_);
      closed_ = true;
      stream_ = nullptr;
      changed_.notify_all();
      // An agent that does not read holds the writer up.
      if (!changed_.wait_for(lock, kLastWrite, [this] { return !writing_; })) {
        context_->TryCancel();
      }
    }
    writer_.join();
    return reason_;
  }

 private:
  void Write() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return closed_ || !queue_.empty(); });
      if (closed_) return;
      const lemo::v1::CoordinatorMessage message = std::move(queue_.front());
      queue_.pop_front();
      WorkerServiceImpl::AgentStream* stream = stream_;
      writing_ = true;
      lock.unlock();
      const bool written = stream->Write(message);
      lock.lock();
      writing_ = false;
      changed_.notify_all();
      if (!written) return;  // the reader sees the end too
    }
  }

  grpc::ServerContext* const context_;
  std::mutex mutex_;
  std::condition_variable changed_;
  WorkerServiceImpl::AgentStream* stream_;
  std::deque<lemo::v1::CoordinatorMessage> queue_;
  bool closed_ = false;
  bool writing_ = false;
  absl::Status reason_;
  std::thread writer_;
};

// A relative path below the result's folder, without a way out of it.
bool IsInside(const std::string& path) {
  if (path.empty() || path.size() > 512 || path.front() == '/') return false;
  const std::vector<std::string> parts = absl::StrSplit(path, '/');
  return std::all_of(parts.begin(), parts.end(), [](const std::string& part) {
    return !part.empty() && part != "." && part != ".." &&
           std::all_of(part.begin(), part.end(),
                       [](unsigned char c) { return c >= 0x20 && c != '\\'; });
  });
}

}  // namespace

bool WorkerServiceImpl::IsWhole(const lemo::v1::JobCheckpoint& checkpoint) const {
  return std::all_of(checkpoint.files().begin(), checkpoint.files().end(),
                     [this](const auto& file) {
                       return IsInside(file.path()) && checkpoints_->Has(file.sha256());
                     });
}

void WorkerServiceImpl::CheckResult(lemo::v1::AttemptEnded* ended) const {
  if (ended->outcome() != lemo::v1::AttemptEnded::SUCCEEDED) return;
  std::string fault;
  std::set<std::string> paths;
  if (ended->artifacts_size() > kResultFiles) {
    fault = absl::StrCat("a result of ", ended->artifacts_size(), " files");
  }
  for (const lemo::v1::Artifact& artifact : ended->artifacts()) {
    if (!fault.empty()) break;
    const std::string path = absl::CHexEscape(artifact.path().substr(0, 200));
    const absl::StatusOr<int64_t> bytes = artifacts_->Size(artifact.sha256());
    if (!IsInside(artifact.path())) {
      fault = absl::StrCat("a file \"", path, "\", which is not inside the result");
    } else if (!paths.insert(artifact.path()).second) {
      fault = absl::StrCat("two files ", path);
    } else if (!bytes.ok() || *bytes != artifact.bytes()) {
      fault = absl::StrCat("a file ", path, " that was not uploaded");
    }
  }
  if (fault.empty()) return;
  ended->set_outcome(lemo::v1::AttemptEnded::FAILED);
  ended->clear_artifacts();
  ended->mutable_failure()->set_kind(lemo::v1::Failure::SYSTEM_ERROR);
  ended->mutable_failure()->set_message("the agent told of success with " + fault);
}

grpc::Status WorkerServiceImpl::Connect(grpc::ServerContext* context, AgentStream* stream) {
  lemo::v1::AgentMessage message;
  if (!stream->Read(&message) || !message.has_hello()) {
    return ToGrpc(absl::InvalidArgumentError("the first message must be `hello`"));
  }
  const absl::Status valid = CheckName("workers", message.hello().worker(), "hello.worker");
  if (!valid.ok()) return ToGrpc(valid);
  if (message.ByteSizeLong() > kHelloBytes) {
    return ToGrpc(
        absl::InvalidArgumentError(absl::StrCat("hello: more than ", kHelloBytes, " bytes")));
  }
  const auto outbox = std::make_shared<Outbox>(context, stream);
  const int64_t session = cluster_->OpenSession(outbox, message.hello());
  const auto inflow = std::make_shared<Inflow>();
  absl::Status breach;  // of the protocol
  while (stream->Read(&message)) {
    const size_t bytes = message.ByteSizeLong();
    breach = message.has_hello() ? absl::InvalidArgumentError("a second hello on one stream")
                                 : CheckSize(message);
    if (!breach.ok()) break;
    if (message.has_ended()) {
      LowerChecksums(message.mutable_ended()->mutable_artifacts());
      CheckResult(message.mutable_ended());
    }
    if (message.has_checkpoint()) {
      LowerChecksums(message.mutable_checkpoint()->mutable_checkpoint()->mutable_files());
    }
    if (message.has_checkpoint() && !IsWhole(message.checkpoint().checkpoint())) continue;
    // What is not taken must be said again, so the agent has to dial again.
    if (!inflow->Take(bytes, context)) break;
    cluster_->Post(AgentSaid{session, std::move(message)},
                   [outbox, inflow, bytes](const absl::Status& status) {
                     inflow->Give(bytes);
                     if (!status.ok()) outbox->Close(status);
                   });
    message = {};
  }
  cluster_->CloseSession(session);
  const absl::Status closed = outbox->Finish();
  return ToGrpc(breach.ok() ? closed : breach);
}

grpc::Status WorkerServiceImpl::UploadArtifact(
    grpc::ServerContext*, grpc::ServerReader<lemo::v1::UploadArtifactRequest>* reader,
    lemo::v1::Artifact* artifact) {
  lemo::v1::UploadArtifactRequest request;
  if (!reader->Read(&request) || !request.has_start()) {
    return ToGrpc(absl::InvalidArgumentError("the first message must have `start`"));
  }
  const lemo::v1::UploadArtifactStart start = request.start();
  if (!IsInside(start.artifact().path())) {
    return ToGrpc(absl::InvalidArgumentError(
        "start.artifact.path: must be relative and stay inside the result"));
  }
  if (!cluster_->IsCurrent(start.id())) {
    return PreconditionFailed(
        "ATTEMPT", start.id().job(),
        absl::StrCat("attempt ", start.id().attempt(), " is not the job's current one"));
  }
  *artifact = start.artifact();
  ArtifactStore* const store =
      start.artifact().path().rfind(kCheckpointPrefix, 0) == 0 ? checkpoints_ : artifacts_;
  if (start.artifact().bytes() > kFileLimit) {
    return ToGrpc(
        absl::InvalidArgumentError(absl::StrCat("start.artifact.bytes: at most ", kFileLimit)));
  }
  if (store->Refresh(start.artifact().sha256())) return grpc::Status::OK;
  // The agent sends the whole file; what came before it broke off is passed over.
  const std::string id = absl::StrCat(start.id().job(), "/", start.id().attempt(), "/",
                                      start.artifact().path(), "/", start.artifact().sha256());
  const auto upload = store->BeginUpload(id, start.artifact().bytes(), start.artifact().sha256());
  if (!upload.ok()) return ToGrpc(upload.status());
  int64_t skip = (*upload)->offset();
  while (reader->Read(&request)) {
    const lemo::v1::DataChunk& chunk = request.chunk();
    if (!request.has_chunk() || chunk.offset() < 0 || chunk.offset() > kFileLimit) {
      return ToGrpc(absl::InvalidArgumentError(absl::StrCat(
          "every message but the first must have `chunk`, with an offset of 0 to ", kFileLimit)));
    }
    const int64_t end = chunk.offset() + static_cast<int64_t>(chunk.data().size());
    if (end <= skip) continue;
    const int64_t known = std::max<int64_t>(skip - chunk.offset(), 0);
    const absl::Status written = (*upload)->Write(
        chunk.offset() + known, std::string_view(chunk.data()).substr(static_cast<size_t>(known)));
    if (!written.ok()) return ToGrpc(written);
    skip = 0;
  }
  return ToGrpc((*upload)->Finish());
}

}  // namespace lemo::coordinator
