// A whole service in one thread: a coordinator around coordinator/core, its store, a network,
// agents with their ranks, and people. Everything in it breaks, by chance and from one seed, until
// it heals; then every job must end.
//
// Rules are checked at every change. The first one broken stops the world: see fault().
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/core/core.h"
#include "scheduler/scheduler.h"
#include "tests/sim/core/loop.h"
#include "tests/sim/core/store.h"

namespace lemo::coordinator::sim {

class Agent;

// One stream between an agent and the coordinator. Messages of a direction stay in order; when it
// breaks, those under way are lost, and each side learns of it in its own time.
struct Link {
  int64_t session = 0;
  int epoch = 0;  // of the coordinator that it was dialled to
  bool broken = false;
  Ms stalled_until = 0;
  Ms last_to_agent = 0;
  Ms last_to_coordinator = 0;
};

// A job as its submitter means it.
struct JobPlan {
  int ranks = 1;
  int min_ranks = 1;  // as ranks, or fewer
  int tensor = 1;
  int64_t contract_bytes = 0;  // of a rank; 0: it asks for no offer
  int64_t least_bytes = 0;     // its contract may be cut down to this; 0: it may not
  int model = 0;               // jobs of one model have its weights in common
  int64_t base_bytes = 0;      // of `contract_bytes`, those weights
  int steps = 1;
  bool bad_data = false;    // validation says so
  bool bad_spec = false;    // a rank says so
  bool impossible = false;  // no worker will ever fit it
  bool endless = false;     // it makes steps until it is stopped
};

// What the world does, for a test that asks whether anything happened at all.
struct Tally {
  int64_t steps = 0;  // of the core
  int64_t crashes = 0;
  int64_t agent_crashes = 0;
  int64_t attempts = 0;
  int64_t gangs = 0;        // of those, over several workers
  int64_t shrunk = 0;       // of those, with fewer ranks than wanted
  int64_t shared = 0;       // ranks that began on a device that another job had a part of
  int64_t on_one_base = 0;  // of those, beside a job with the same weights
  int64_t cuts = 0;         // of contracts
  int64_t kept_cuts = 0;
  int64_t raises = 0;
  int64_t broken_links = 0;
  int64_t lost_leases = 0;
  double lost_seconds = 0;  // that attempts of lost workers were charged for
  int64_t clock_jumps = 0;
  int64_t succeeded = 0;
  int64_t failed = 0;
  int64_t cancelled = 0;
};

class World {
 public:
  World(uint64_t seed, bool trace);
  ~World();

  void Run();
  // Which rule was broken, and when; empty: none.
  const std::string& fault() const { return fault_; }
  const Tally& tally() const { return tally_; }

  // --- For agents ---
  Loop& loop() { return loop_; }
  Chance& chance() { return chance_; }
  bool faults() const { return faults_; }
  const CoreOptions& options() const { return options_; }
  const JobPlan& PlanOf(const std::string& job) { return plans_[job]; }
  int& CheckpointStep(const std::string& job) { return checkpoint_steps_[job]; }
  FakeStore& store() { return store_; }
  Tally& tally() { return tally_; }
  void Trace(const std::string& what);
  void Break(const std::string& rule);

  // nullptr: nobody answers.
  std::shared_ptr<Link> Dial(Agent* agent);
  void SendToCoordinator(const std::shared_ptr<Link>& link, lemo::v1::AgentMessage message);
  void BreakLink(Agent* agent, const std::shared_ptr<Link>& link);
  // Processes of an attempt begin and end on a worker: of one attempt of a job at a time, and one a
  // device, or several whose jobs have contracts that fit.
  void RanksBegin(const std::string& job, int attempt, const std::string& worker,
                  const std::vector<int>& devices);
  void RanksEnd(const std::string& job, const std::string& worker);
  // From now on each rank of the job may hold so many bytes: what the ranks of a device may hold
  // between them, weights of one model once, is no more than it has.
  void RanksHold(const std::string& job, int64_t bytes);
  // A gang begins on all of its workers: with all ranks of what is stored, or a rule is broken.
  void GangBegins(const std::string& job, int attempt);
  // nullptr when there is none of that name.
  Agent* FindAgent(const std::string& worker);

 private:
  struct Gang {
    int attempt;
    std::map<std::string, std::vector<int>> devices;  // by worker
    int64_t holds = 0;                                // each rank, at most
  };

  absl::Time CoordinatorTime() const;
  void StartCoordinator();
  void CrashCoordinator();
  // A step with its effects. False: the coordinator is down or stopped, or died before it had done
  // all of it.
  bool Deliver(const Event& event, absl::Status* status = nullptr);
  bool CarryOut(const std::vector<Effect>& effects);
  bool CarryOut(const Effect& effect);
  void DeliverWhenAwake(int epoch, Event event);
  void WorkOffBacklog();
  bool Frozen() const { return loop_.now() < frozen_until_; }
  void PlanTick();
  void SendToAgent(int64_t session, lemo::v1::CoordinatorMessage message);
  void CheckCore();
  void CheckDevice(const std::string& worker, int device);

  void Submit(const std::string& job);
  void Ask(const std::string& job);
  void Steer();
  void Misfortune();
  void Heal();
  void Tidy();
  bool AllEnded() const;

  Loop loop_;
  Chance chance_;
  const bool trace_;
  bool faults_ = true;
  std::string fault_;
  Tally tally_;

  CoreOptions options_;
  scheduler::FifoScheduler scheduler_;
  std::unique_ptr<Core> core_;
  int epoch_ = 0;
  absl::Duration skew_;  // of the coordinator's clock
  Ms next_jump_ = 0;
  Ms frozen_until_ = 0;
  std::vector<std::pair<int, Event>> backlog_;  // with the epoch that they came in
  int64_t tick_ = 0;
  int64_t next_session_ = 1;
  int64_t next_number_ = 1;
  std::set<std::string> validating_;

  struct Peer {
    Agent* agent;
    std::shared_ptr<Link> link;
  };
  std::map<int64_t, Peer> peers_;  // by session
  std::vector<std::unique_ptr<Agent>> agents_;
  int most_ranks_ = 0;  // of a job that is not impossible
  bool tight_ = false;  // few devices, small ones, and many jobs with contracts

  FakeStore store_;
  std::map<std::string, JobPlan> plans_;
  std::map<std::string, int> checkpoint_steps_;
  std::set<std::string> acknowledged_;
  std::set<std::string> cancelled_;  // acknowledged as well
  std::map<std::string, Gang> running_;
};

}  // namespace lemo::coordinator::sim
