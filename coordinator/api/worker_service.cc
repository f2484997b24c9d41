#include "coordinator/api/worker_service.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "coordinator/api/errors.h"
#include "coordinator/api/names.h"

namespace lemo::coordinator {
namespace {

// Messages that wait for an agent which does not read; one that has so many is cut off and dials
// anew.
constexpr size_t kOutboxLimit = 10'000;

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
      const std::lock_guard lock(mutex_);
      closed_ = true;
      stream_ = nullptr;
    }
    changed_.notify_one();
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
      lock.unlock();
      const bool written = stream->Write(message);
      lock.lock();
      if (!written) return;  // the reader sees the end too
    }
  }

  grpc::ServerContext* const context_;
  std::mutex mutex_;
  std::condition_variable changed_;
  WorkerServiceImpl::AgentStream* stream_;
  std::deque<lemo::v1::CoordinatorMessage> queue_;
  bool closed_ = false;
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

grpc::Status WorkerServiceImpl::Connect(grpc::ServerContext* context, AgentStream* stream) {
  lemo::v1::AgentMessage message;
  if (!stream->Read(&message) || !message.has_hello()) {
    return ToGrpc(absl::InvalidArgumentError("the first message must be `hello`"));
  }
  const absl::Status valid = CheckName("workers", message.hello().worker(), "hello.worker");
  if (!valid.ok()) return ToGrpc(valid);
  const auto outbox = std::make_shared<Outbox>(context, stream);
  const int64_t session = cluster_->OpenSession(outbox, message.hello());
  while (stream->Read(&message)) {
    if (message.has_hello()) break;
    // What is not taken must be said again, so the agent has to dial again.
    cluster_->Post(AgentSaid{session, std::move(message)}, [outbox](const absl::Status& status) {
      if (!status.ok()) outbox->Close(status);
    });
    message = {};
  }
  cluster_->CloseSession(session);
  return ToGrpc(outbox->Finish());
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
  if (artifacts_->Has(start.artifact().sha256())) return grpc::Status::OK;
  // The agent sends the whole file; what came before it broke off is passed over.
  const std::string id = absl::StrCat(start.id().job(), "/", start.id().attempt(), "/",
                                      start.artifact().path(), "/", start.artifact().sha256());
  const auto upload =
      artifacts_->BeginUpload(id, start.artifact().bytes(), start.artifact().sha256());
  if (!upload.ok()) return ToGrpc(upload.status());
  int64_t skip = (*upload)->offset();
  while (reader->Read(&request)) {
    const lemo::v1::DataChunk& chunk = request.chunk();
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
