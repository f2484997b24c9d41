// lemo-worker: dials the coordinator, keeps a lease, and runs the attempts that it is assigned.
//
// Threads:
//  - the loop (Run): everything but the following. It alone forks, so it is to live as long as the
//    process, and it never waits for the network or for a rank;
//  - of each session a reader and a writer, which move messages between the stream and bounded
//    queues;
//  - of an attempt that fetches files or hands over its result, one that blocks in those calls;
//  - one that asks, now and then, which jobs have ended;
//  - of each call of another agent (NodeServer) one or two, which wait for the loop;
//  - gRPC's own.
// They give their results to the loop through mutexes or atomic flags and wake it by an eventfd.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/agent/attempt.h"
#include "worker/agent/devices.h"
#include "worker/agent/file_cache.h"
#include "worker/agent/home.h"
#include "worker/agent/job_sweeper.h"
#include "worker/agent/lease.h"
#include "worker/agent/metrics.h"
#include "worker/agent/model_cache.h"
#include "worker/agent/node_server.h"
#include "worker/agent/options.h"
#include "worker/agent/session.h"
#include "worker/agent/waker.h"
#include "worker/agent/watchdog.h"

namespace lemo::agent {

class Agent {
 public:
  // Takes the directory, lists devices and models, and ends what an earlier agent left running,
  // which can take up to 20 s. FailedPrecondition when another agent has the directory,
  // InvalidArgument when `options.listen` cannot be had.
  // `watchdog` and `metrics` may be null, or must outlive the agent.
  static absl::StatusOr<std::unique_ptr<Agent>> Create(AgentOptions options, Watchdog* watchdog,
                                                       Metrics* metrics = nullptr);
  // Kills all gangs.
  ~Agent();
  Agent(const Agent&) = delete;
  Agent& operator=(const Agent&) = delete;

  // Runs until Drain is over or Kill. Call once.
  void Run();

  // Thread-safe, and safe in a signal handler. Drain: takes no more jobs, lets the gangs checkpoint
  // and end, waits up to a minute until the coordinator knows, and leaves. Kill: leaves at once.
  void Drain();
  void Kill();

  const std::string& worker() const { return home_.worker(); }

 private:
  Agent(AgentOptions options, Home home, Watchdog* watchdog, Metrics* metrics);
  AttemptContext Context();
  // How other agents reach this one; empty when they do not.
  lemo::v1::NodeEndpoint Endpoint() const;

  void Recover();
  Instant PumpSession(Instant now);
  void Connect();
  void Disconnect(Instant now, const std::string& why);
  void On(const lemo::v1::CoordinatorMessage& message, Instant now);
  void OnWelcome(const lemo::v1::Welcome& welcome);
  void OnAssign(const lemo::v1::Assignment& assignment);
  Instant KeepLease(Instant now);
  Instant AdvanceAttempts(Instant now);
  Instant Sweep(Instant now);
  // Removes shared weights that no rank maps.
  void SweepBases();
  bool DrainIsOver(Instant now);
  void PublishStatus();
  void Wait(Instant until);
  Attempt* Find(const lemo::v1::AttemptId& id);
  void SendEnd(const lemo::v1::AttemptId& id, lemo::v1::AttemptEnded ended);

  const AgentOptions options_;
  const Home home_;
  Watchdog* const watchdog_;
  Metrics* const metrics_;
  Waker waker_;
  std::atomic<int> stop_requests_{0};  // 1: drain, 2: at once
  const std::vector<LocalDevice> devices_;
  const int64_t host_memory_bytes_;
  const std::shared_ptr<grpc::Channel> channel_;  // of transfers
  const std::unique_ptr<lemo::v1::WorkerService::Stub> stub_;
  const std::unique_ptr<lemo::v1::JobService::Stub> jobs_;
  FileCache cache_;
  ModelCache models_;
  JobSweeper sweeper_;
  Instant sweep_due_{};
  int64_t bases_bytes_ = 0;  // when they were looked at last

  std::unique_ptr<Session> session_;
  bool welcomed_ = false;
  Instant dial_due_{};
  int failed_dials_ = 0;
  std::minstd_rand random_;
  Lease lease_;
  bool fenced_ = false;
  BootClock::duration heartbeat_ = BootClock::duration::zero();
  Instant heartbeat_due_ = kNever;
  int64_t heartbeat_number_ = 0;

  bool draining_ = false;
  bool drain_sent_ = false;
  Instant drain_until_ = kNever;

  GangParts parts_;
  std::map<std::string, std::unique_ptr<Attempt>> attempts_;  // by job
  // Assignments that wait until the former attempt of the job has gone.
  std::map<std::string, lemo::v1::Assignment> next_;
  std::unique_ptr<NodeServer> node_server_;  // null: this worker takes no part in gangs of several
};

}  // namespace lemo::agent
