#include "worker/agent/session.h"

#include <utility>

#include "worker/agent/uplink.h"

namespace lemo::agent {

Session::Session(const std::string& coordinator, const lemo::v1::Hello& hello, Waker* waker)
    : waker_(waker),
      opened_(BootClock::now()),
      stub_(lemo::v1::WorkerService::NewStub(Dial(coordinator))) {
  *outgoing_.emplace_back().mutable_hello() = hello;
  stream_ = stub_->Connect(&context_);
  writer_ = std::thread([this] { WriteAll(); });
  reader_ = std::thread([this] { ReadAll(); });
}

Session::~Session() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
    changed_.notify_all();
  }
  context_.TryCancel();
  reader_.join();
}

bool Session::Send(lemo::v1::AgentMessage message) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (closing_ || outgoing_.size() >= kOutgoingMax) return false;
  outgoing_.push_back(std::move(message));
  changed_.notify_all();
  return true;
}

size_t Session::queued() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return outgoing_.size();
}

std::optional<lemo::v1::CoordinatorMessage> Session::Receive() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (incoming_.empty()) return std::nullopt;
  lemo::v1::CoordinatorMessage message = std::move(incoming_.front());
  incoming_.pop_front();
  changed_.notify_all();
  return message;
}

std::optional<grpc::Status> Session::ended() const {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!incoming_.empty()) return std::nullopt;
  return ended_;
}

void Session::WriteAll() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return closing_ || !outgoing_.empty(); });
    if (closing_) return;
    const lemo::v1::AgentMessage message = std::move(outgoing_.front());
    outgoing_.pop_front();
    lock.unlock();
    const bool written = stream_->Write(message);
    lock.lock();
    if (!written) return;  // the reader learns why
  }
}

void Session::ReadAll() {
  for (lemo::v1::CoordinatorMessage message; stream_->Read(&message);) {
    std::unique_lock<std::mutex> lock(mutex_);
    // A loop that is busy holds the coordinator back rather than filling memory.
    changed_.wait(lock, [this] { return closing_ || incoming_.size() < kIncomingMax; });
    if (closing_) break;
    incoming_.push_back(std::move(message));
    lock.unlock();
    waker_->Wake();
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
    changed_.notify_all();
  }
  context_.TryCancel();  // a write that still waits
  writer_.join();
  grpc::Status status = stream_->Finish();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ended_ = std::move(status);
  }
  waker_->Wake();
}

}  // namespace lemo::agent
