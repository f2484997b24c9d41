// An agent of the simulated world, with the rules that the real one must keep:
//  - its lease counts from when it sent what was answered. When two thirds are over without an
//  answer it ends its ranks, and takes no assignment until it has a lease again;
//  - what it has of attempts is on its disk: events until they are acknowledged, ends until they
//  are forgotten;
//  - ranks do not outlive it; it dials only when those of its former life are gone;
//  - ranks of a gang over several workers begin on all of them, when all are ready, and when those
//  of one are gone the others' go soon. Who does not lead says no more than that nothing is left of
//  its own, when it was told to end or had to.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lemo/v1/worker_service.pb.h"
#include "tests/sim/core/world.h"

namespace lemo::coordinator::sim {

class Agent {
 public:
  // `reachable`: by other agents.
  Agent(World* world, std::string name, std::vector<lemo::v1::Device> devices, bool reachable);

  const std::string& name() const { return name_; }
  int64_t MemoryOf(int device) const {
    return devices_[static_cast<size_t>(device)].memory_bytes();
  }
  bool SharesBases(int device) const {
    return devices_[static_cast<size_t>(device)].shares_bases();
  }
  void Begin();
  void OnMessage(const std::shared_ptr<Link>& link, const lemo::v1::CoordinatorMessage& message);
  void OnBroken(const std::shared_ptr<Link>& link);

  void Crash(bool disk_lost);
  void Leave();           // SIGTERM: drain, then go, and come back later
  void CutOff(Ms until);  // cannot dial
  void BreakLink();
  void Stall(Ms until);  // what is sent arrives late
  bool RanksAlive() const;

  // --- Of other agents, beside the coordinator ---
  // Whether it is ready for its part of an attempt.
  bool Ready(const std::string& job, int attempt) const;
  void BeginPart(const std::string& job, int attempt);
  // Somebody's ranks of the gang are gone: this one's go, if there are any, in a moment.
  void GangBroke(const std::string& job, int attempt);

 private:
  struct Attempt {
    lemo::v1::AttemptId id;
    std::vector<int> devices;
    std::vector<std::string> workers;  // of a gang over several, the lead first
    bool ready = false;
    std::vector<lemo::v1::RunEvent> events;
    int64_t acknowledged = 0;
    bool alive = false;    // has ranks
    bool over = false;     // `end` is set
    bool discard = false;  // not current: to be forgotten when its ranks are gone
    bool stopping = false;
    int64_t budget = 0;       // of each rank, as it is written for them
    int64_t step_budget = 0;  // with which the step at hand is computed
    lemo::v1::AttemptEnded end;
  };
  using Key = std::pair<std::string, int>;

  // Does `what` unless the agent has died in between.
  void After(Ms delay, std::function<void()> what);
  void Dial();
  void Beat();
  void CheckLease();
  bool HasLease() const;
  void Say(lemo::v1::AgentMessage message);
  void SendEvents(const Attempt& attempt, int64_t first);
  void SendEnd(const Attempt& attempt);
  void OnWelcome(const lemo::v1::Welcome& welcome);
  void OnAssign(const lemo::v1::Assignment& assignment);
  void StartRanks(const Key& key);
  bool Leads(const Attempt& attempt) const;
  // Ranks here are gone.
  void Gone(Attempt& attempt);
  // The ranks read their budget, and begin a step.
  void BeginStep(const Key& key, int step);
  void MakeStep(const Key& key, int step);
  void Emit(Attempt& attempt, lemo::v1::RunEvent event);
  void StopRanks(const Key& key, Ms delay, lemo::v1::AttemptEnded::Outcome outcome);
  void End(Attempt& attempt, lemo::v1::AttemptEnded::Outcome outcome,
           lemo::v1::Failure::Kind kind = lemo::v1::Failure::SYSTEM_ERROR);
  void MaybeGo();

  World* world_;
  const std::string name_;
  const std::vector<lemo::v1::Device> devices_;
  const bool reachable_;

  std::map<Key, Attempt> attempts_;  // on disk
  int life_ = 0;
  bool up_ = false;
  bool leaving_ = false;
  Ms cut_until_ = 0;
  std::shared_ptr<Link> link_;
  bool welcomed_ = false;
  Ms hello_sent_ = 0;
  int64_t beat_ = 0;
  std::map<int64_t, Ms> beats_sent_;
  Ms renewed_ = -1'000'000;
};

}  // namespace lemo::coordinator::sim
