// Messages of a server stream, with patience.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cli/interrupt.h"
#include "grpcpp/grpcpp.h"

namespace lemo::cli {

enum class StreamEvent {
  kMessage,
  kEnd,          // status() says how
  kTimeout,      // nothing came for as long as the caller would wait; the stream is still good
  kInterrupted,  // Ctrl-C since the stream was made, when CatchInterrupts was called
};

// gRPC's blocking readers cannot give up waiting; this one can. Not thread-safe. The destructor
// cancels what is still open.
template <typename Response>
class Stream {
 public:
  using Reader = std::unique_ptr<grpc::ClientAsyncReader<Response>>;
  // Prepares the call, for example PrepareAsyncWatchJob.
  using Prepare = std::function<Reader(grpc::ClientContext*, grpc::CompletionQueue*)>;

  explicit Stream(const Prepare& prepare) : reader_(prepare(&context_, &queue_)) {
    reader_->StartCall(this);
  }

  ~Stream() {
    context_.TryCancel();
    while (pending_) Advance(absl::InfiniteFuture());
    queue_.Shutdown();
    void* tag;
    bool ok;
    while (queue_.Next(&tag, &ok)) {
    }
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // `*message` is set with kMessage only.
  StreamEvent Next(absl::Duration patience, Response* message) {
    const absl::Time deadline = absl::Now() + patience;
    for (;;) {
      if (state_ == State::kDone) return StreamEvent::kEnd;
      if (!pending_) {
        reader_->Read(&message_, this);
        pending_ = true;
      }
      if (Interrupts() > interrupts_) return StreamEvent::kInterrupted;
      const absl::Time now = absl::Now();
      if (now >= deadline) return StreamEvent::kTimeout;
      // In slices, so that Ctrl-C is heard.
      if (Advance(std::min(deadline, now + absl::Milliseconds(100))) && has_message_) {
        has_message_ = false;
        *message = std::move(message_);
        message_.Clear();
        return StreamEvent::kMessage;
      }
    }
  }

  // After kEnd.
  const grpc::Status& status() const { return status_; }

 private:
  enum class State { kStarting, kReading, kFinishing, kDone };

  // Takes one completion, if it comes before `deadline`, and starts what follows from it.
  bool Advance(absl::Time deadline) {
    void* tag;
    bool ok = false;
    const auto until = deadline == absl::InfiniteFuture()
                           ? std::chrono::system_clock::time_point::max()
                           : absl::ToChronoTime(deadline);
    if (queue_.AsyncNext(&tag, &ok, until) != grpc::CompletionQueue::GOT_EVENT) return false;
    pending_ = false;
    if (state_ == State::kFinishing) {
      state_ = State::kDone;
    } else if (!ok) {
      state_ = State::kFinishing;
      reader_->Finish(&status_, this);
      pending_ = true;
    } else {
      has_message_ = state_ == State::kReading;
      state_ = State::kReading;
    }
    return true;
  }

  const int interrupts_ = Interrupts();
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  Reader reader_;
  State state_ = State::kStarting;
  bool pending_ = true;  // exactly one operation is under way
  bool has_message_ = false;
  Response message_;
  grpc::Status status_;
};

}  // namespace lemo::cli
