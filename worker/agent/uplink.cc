#include "worker/agent/uplink.h"

#include <algorithm>

namespace lemo::agent {
namespace {

constexpr BootClock::duration kPauseLeast = std::chrono::milliseconds(200);
constexpr BootClock::duration kPauseMost = std::chrono::seconds(5);
constexpr BootClock::duration kPatience = std::chrono::minutes(10);

}  // namespace

std::shared_ptr<grpc::Channel> Dial(const std::string& address) {
  grpc::ChannelArguments arguments;
  // Not shared with other channels, so that a new one dials anew and does not sit out the back-off
  // of an old one.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

std::shared_ptr<grpc::ServerCredentials> ListenCredentials() {
  return grpc::InsecureServerCredentials();
}

bool IsTransient(const grpc::Status& status) {
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::DEADLINE_EXCEEDED:
    case grpc::StatusCode::ABORTED:
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
    case grpc::StatusCode::INTERNAL:  // what a broken connection can look like
    case grpc::StatusCode::UNKNOWN:
      return true;
    default:
      return false;
  }
}

void Canceller::Cancel() {
  std::lock_guard<std::mutex> lock(mutex_);
  cancelled_ = true;
  if (call_ != nullptr) call_->TryCancel();
  changed_.notify_all();
}

bool Canceller::cancelled() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return cancelled_;
}

bool Canceller::Sleep(BootClock::duration duration) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait_for(lock, duration, [this] { return cancelled_; });
  return !cancelled_;
}

CancellableContext::CancellableContext(Canceller* canceller, BootClock::duration timeout)
    : canceller_(canceller) {
  context_.set_deadline(std::chrono::system_clock::now() +
                        std::chrono::duration_cast<std::chrono::milliseconds>(timeout));
  std::lock_guard<std::mutex> lock(canceller_->mutex_);
  canceller_->call_ = &context_;
  if (canceller_->cancelled_) context_.TryCancel();
}

CancellableContext::~CancellableContext() {
  std::lock_guard<std::mutex> lock(canceller_->mutex_);
  canceller_->call_ = nullptr;
}

bool Retry::Again(bool progress) {
  if (progress) {
    progressed_ = BootClock::now();
    pause_ = BootClock::duration::zero();
  }
  if (BootClock::now() - progressed_ > kPatience) return false;
  pause_ = std::clamp(pause_ * 2, kPauseLeast, kPauseMost);
  return canceller_->Sleep(pause_);
}

BootClock::duration TransferTimeout(int64_t bytes) {
  return std::chrono::seconds(30) + std::chrono::seconds(bytes >> 20);
}

}  // namespace lemo::agent
