// The running core: one thread that steps it, makes every step durable, and only then lets the
// world see.
//
//   API and agents --Post--> queue --loop thread--> Core::Step -> Store::Apply -> replies, agents,
//   watchers
//
// Events that arrive while a commit is under way are stepped and committed together: that is the
// group commit. When a commit fails, what the core believes and what is stored differ; the cluster
// then does what a restart would do: it fails the waiting calls, closes the agents' streams and
// recovers the core from the store.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/core/core.h"
#include "coordinator/runtime/watch_hub.h"
#include "coordinator/store/store.h"

namespace lemo::coordinator {

// The coordinator's end of an agent's stream. Called from the loop thread; must not block.
class AgentLink {
 public:
  virtual ~AgentLink() = default;
  virtual void Send(const lemo::v1::CoordinatorMessage& message) = 0;
  virtual void Close(const absl::Status& reason) = 0;
};

// What a step may start beside messages. Called from the loop thread; must not block.
class Services {
 public:
  virtual ~Services() = default;
  virtual void StartValidation(const JobRecord& record) = 0;
  virtual void StopValidation(const std::string& job) = 0;
  virtual void AppendLog(const std::string& job, const lemo::v1::LogChunk& chunk) = 0;
  // Removes checkpoints' content, unless a stored job names it.
  virtual void DropContent(const std::vector<std::string>& sha256) = 0;
};

// Told of every commit. Called from the loop thread; must not block.
class CommitObserver {
 public:
  virtual ~CommitObserver() = default;
  // `effects` are durable when `stored` is ok; `took` is the time of the commit.
  virtual void OnCommit(const std::vector<Effect>& effects, absl::Duration took,
                        const absl::Status& stored) = 0;
};

// What is at one moment, for metrics.
struct ClusterState {
  struct PlacedJob {  // STARTING or RUNNING
    std::string name;
    int attempt = 0;
    int restarts = 0;
    std::vector<lemo::v1::GangNode> nodes;
    lemo::v1::Progress progress;
    int64_t contract_bytes = 0;  // of a rank; 0 without a contract
    int64_t allotted_bytes = 0;  // of those, now
    int64_t base_bytes = 0;      // of those, in common with others
    std::string base;
  };
  // How many have not ended, by state and reason.
  std::map<std::pair<lemo::v1::Job::State, lemo::v1::Job::ReasonCode>, int64_t> jobs;
  std::vector<PlacedJob> placed;
  std::optional<absl::Time> oldest_queued_time;
  std::vector<lemo::v1::Worker> workers;
  size_t agent_streams = 0;
  size_t waiting_events = 0;  // posted, and not yet stepped
};

// Thread-safe.
class Cluster {
 public:
  // Recovers from the store. `store`, `hub`, `services` and `observer`, which may be null, outlive
  // the cluster.
  static absl::StatusOr<std::unique_ptr<Cluster>> Start(const CoreOptions& options, Store* store,
                                                        WatchHub* hub, Services* services,
                                                        CommitObserver* observer = nullptr);
  ~Cluster();

  // `done` is called from the loop thread once the event's effects are durable, or with why they
  // are not. UNAVAILABLE while stopping, RESOURCE_EXHAUSTED when the queue is full.
  using Done = std::function<void(const absl::Status&)>;
  void Post(Event event, Done done = nullptr);
  // Post, and wait.
  absl::Status Do(Event event);
  // Creates a job, or answers the one that `record.request_id` made before. ALREADY_EXISTS when the
  // same id asked for something else.
  absl::StatusOr<lemo::v1::Job> Submit(JobRecord record);

  // A new stream of an agent; its messages follow as AgentSaid with the number that is answered.
  int64_t OpenSession(std::shared_ptr<AgentLink> link, const lemo::v1::Hello& hello);
  void CloseSession(int64_t session);

  std::vector<lemo::v1::Worker> Workers() const;
  struct QueueEntry {
    lemo::v1::Job job;
    absl::Time queued_time;
  };
  std::vector<QueueEntry> Queue() const;
  ClusterState State() const;
  // Adds to a plan when each offer could start, as things are now: see core/contract.h.
  void AddTimes(const JobRecord& record, lemo::v1::PlanResult* plan) const;
  // core/planned_devices.h
  lemo::v1::PlanOptions PlannedDevices(const std::string& type) const;
  bool UsesFile(const std::string& file) const;
  // Whether `id` is the attempt that the job is now in.
  bool IsCurrent(const lemo::v1::AttemptId& id) const;

  // No more events are taken; those that were are made durable. Then the thread has ended. Agents
  // go on.
  void Stop();

 private:
  struct Item {
    Event event;
    Done done;
    // Set for submissions, which are looked up before they are stepped.
    lemo::v1::Job* submitted = nullptr;
  };

  Cluster(const CoreOptions& options, Store* store, WatchHub* hub, Services* services,
          CommitObserver* observer);
  absl::Status Recover();
  absl::Status Commit(const std::vector<Effect>& effects);
  void Loop();
  void Enqueue(Item item);
  std::vector<Item> NextItems();
  // nullopt: the event is to be stepped. Else the answer.
  std::optional<absl::Status> AnswerRepeated(const Item& item,
                                             const std::map<std::string, JobRecord>& fresh);
  void Process(std::vector<Item> items);
  void CarryOut(const std::vector<Effect>& effects);
  void CloseAllSessions(const absl::Status& reason);

  const CoreOptions options_;
  Store* const store_;
  WatchHub* const hub_;
  Services* const services_;
  CommitObserver* const observer_;
  const scheduler::FifoScheduler scheduler_;

  mutable std::mutex core_mutex_;  // core_: stepped by the loop thread, read by others
  std::unique_ptr<Core> core_;
  // Of the loop thread only.
  int64_t last_number_ = 0;
  bool broken_ = false;  // the core is not what the store holds, and there is no time to mend it

  mutable std::mutex queue_mutex_;
  std::condition_variable queue_changed_;
  std::deque<Item> queue_;
  bool stopping_ = false;

  mutable std::mutex sessions_mutex_;
  std::map<int64_t, std::shared_ptr<AgentLink>> sessions_;
  int64_t last_session_ = 0;

  std::thread loop_;
};

}  // namespace lemo::coordinator
