// One stream to the coordinator.
#pragma once

#include <grpcpp/grpcpp.h>

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "lemo/v1/worker_service.grpc.pb.h"
#include "worker/agent/clock.h"
#include "worker/agent/waker.h"

namespace lemo::agent {

// A reader and a writer thread around WorkerService.Connect. What belongs to the agent's loop is
// the whole public interface; the threads only move messages between the stream and two bounded
// queues, and wake the loop.
class Session {
 public:
  // Dials and sends `hello`; nothing is waited for. `waker` must outlive the session.
  Session(const std::string& coordinator, const lemo::v1::Hello& hello, Waker* waker);
  // Cancels the stream and joins the threads.
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // When `hello` was handed over.
  Instant opened() const { return opened_; }
  // Queues a message. False, and nothing is queued, when the stream is broken or the coordinator
  // takes so little that the queue is full.
  bool Send(lemo::v1::AgentMessage message);
  // Messages that wait to be written.
  size_t queued() const;
  // The next message that came.
  std::optional<lemo::v1::CoordinatorMessage> Receive();
  // Why the stream has ended, once it has and all that came was received.
  std::optional<grpc::Status> ended() const;

 private:
  static constexpr size_t kOutgoingMax = 1024;
  static constexpr size_t kIncomingMax = 1024;

  void ReadAll();
  void WriteAll();

  Waker* const waker_;
  const Instant opened_;
  grpc::ClientContext context_;
  std::unique_ptr<lemo::v1::WorkerService::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<lemo::v1::AgentMessage, lemo::v1::CoordinatorMessage>>
      stream_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<lemo::v1::AgentMessage> outgoing_;
  std::deque<lemo::v1::CoordinatorMessage> incoming_;
  bool closing_ = false;
  std::optional<grpc::Status> ended_;

  std::thread writer_;
  std::thread reader_;  // ends last, and joins the writer
};

}  // namespace lemo::agent
