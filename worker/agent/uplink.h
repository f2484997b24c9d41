// Channels to the coordinator and to other agents, and what bounds the calls on them.
#pragma once

#include <grpcpp/grpcpp.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>

#include "worker/agent/clock.h"

namespace lemo::agent {

// A channel with a connection of its own. Lazy: it dials with the first call. With the next the one
// place that says how the agent proves who it is.
std::shared_ptr<grpc::Channel> Dial(const std::string& address);
// What it asks of those that dial it.
std::shared_ptr<grpc::ServerCredentials> ListenCredentials();

// Whether a call that failed so may succeed when it is made again.
bool IsTransient(const grpc::Status& status);

// Ends the calls and waits of one transfer from another thread. Thread-safe.
class Canceller {
 public:
  // From now on calls and waits end at once.
  void Cancel();
  bool cancelled() const;
  // Waits; false when cancelled.
  bool Sleep(BootClock::duration duration);

 private:
  friend class CancellableContext;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool cancelled_ = false;
  grpc::ClientContext* call_ = nullptr;
};

// A call's context with a deadline that `canceller` can end.
class CancellableContext {
 public:
  CancellableContext(Canceller* canceller, BootClock::duration timeout);
  ~CancellableContext();
  CancellableContext(const CancellableContext&) = delete;
  CancellableContext& operator=(const CancellableContext&) = delete;

  grpc::ClientContext* get() { return &context_; }

 private:
  Canceller* canceller_;
  grpc::ClientContext context_;
};

// Waits between tries of a call, and gives up when none has got anywhere for ten minutes.
class Retry {
 public:
  explicit Retry(Canceller* canceller) : canceller_(canceller) {}
  // After a failed try; `progress` says whether it moved anything. Waits with a growing pause.
  // False when it is time to give up, or cancelled.
  bool Again(bool progress);

 private:
  Canceller* canceller_;
  BootClock::duration pause_ = BootClock::duration::zero();
  Instant progressed_ = BootClock::now();
};

// Time for a call that moves so many bytes: half a minute and 1 MiB/s.
BootClock::duration TransferTimeout(int64_t bytes);

}  // namespace lemo::agent
