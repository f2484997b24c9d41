// Agents without ranks: they take every job that they are given and tell of steps at a set pace.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "lemo/v1/worker_service.grpc.pb.h"

namespace lemo::bench {

class FakeAgents {
 public:
  // Each with so many CPU devices, over a connection of its own.
  FakeAgents(const std::string& address, int agents, int devices);
  ~FakeAgents();  // cuts the streams off

  // Waits until `count` jobs were assigned and tells that they have started; their names.
  absl::StatusOr<std::vector<std::string>> TakeJobs(int count);

  // One event at a time, the jobs in turn, `per_second` in all. An event's `unix_seconds` is when
  // it was sent. Answers how many were.
  absl::StatusOr<int64_t> TellSteps(double per_second, absl::Duration duration);

 private:
  struct Agent;
  struct Attempt {
    Agent* agent;
    lemo::v1::AttemptId id;
    int64_t sequence = 0;
  };
  void Read(Agent* agent);

  std::vector<std::unique_ptr<Agent>> agents_;
  std::mutex mutex_;
  std::vector<Attempt> attempts_;
  absl::Status broken_;  // why a stream ended before its time
  std::atomic<bool> stopping_ = false;
};

}  // namespace lemo::bench
