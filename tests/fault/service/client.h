// A user who submits job after job and follows each to its end, through whatever happens.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "lemo/v1/job_service.grpc.pb.h"

namespace lemo::coordinator {

// One job, as its submitter saw it.
struct Followed {
  size_t spec = 0;  // which of the specs
  std::string name;
  std::vector<lemo::v1::JobEvent> events;
  bool ended = false;  // the stream of its events came to its end
};

struct ClientCounts {
  int submissions = 0;  // calls, of which some are of the same job
  int watches = 0;
  int pauses = 0;
  int errors = 0;  // of calls, all of them of a kind that one may try again
};

// Belongs to one thread.
class Client {
 public:
  using Clock = std::chrono::steady_clock;

  // Dials `address`. Failures are the test's.
  Client(const std::string& address, const std::vector<lemo::v1::JobSpec>* specs, unsigned seed);

  // Submits and follows jobs, one after the other and at least one, until `enough`. Gives up at
  // `deadline`.
  void Run(const std::atomic<bool>& enough, const std::atomic<Clock::time_point>& deadline);

  const std::vector<Followed>& jobs() const { return jobs_; }
  const ClientCounts& counts() const { return counts_; }

 private:
  using Stub = lemo::v1::JobService::StubInterface;
  // Tries until it is done, refused for good, or over time.
  grpc::Status Call(const std::function<grpc::Status(grpc::ClientContext*)>& call);
  std::unique_ptr<grpc::ClientContext> Context();
  bool OverTime() const { return Clock::now() >= deadline_->load(); }
  std::string Submit(const lemo::v1::JobSpec& spec);
  void Follow(Followed* job);
  // One watch, until it breaks off. OK when the job's history is complete.
  grpc::Status Watch(Followed* job);
  void Pause(const std::string& name);
  void Resume(const std::string& name);

  const std::unique_ptr<Stub> jobs_stub_;
  const std::vector<lemo::v1::JobSpec>* const specs_;
  std::mt19937 random_;
  const std::atomic<Clock::time_point>* deadline_ = nullptr;
  std::vector<Followed> jobs_;
  ClientCounts counts_;
  int pause_at_ = 0;  // the step after which the job at hand is to be paused; 0: not
};

}  // namespace lemo::coordinator
