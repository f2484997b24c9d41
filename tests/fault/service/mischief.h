// Faults drawn from a seed, done to a running service and undone again.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tests/e2e/service/service_fixture.h"
#include "tests/fault/service/marked.h"
#include "tests/fault/service/proxy.h"

namespace lemo::coordinator {

enum class Fault {
  kKillCoordinator,
  kStopCoordinator,
  kRestartCoordinator,
  kFillCoordinatorsDisk,
  kKillAgent,
  kStopAgent,
  kStopStartingAgent,
  kFillAgentsDisk,
  kDrainAgent,
  kKillRank,
  kStopRank,
  kKillCheck,
  kCutAgents,
  kDelayAgents,
  kThrottleAgents,
  kCutClients,
  kDelayClients,
  kCount,
};

const char* NameOf(Fault fault);

// Belongs to one thread, which is to outlive what it starts. The seed fixes what is drawn; when it
// strikes depends on what the service is doing.
class Mischief {
 public:
  using Clock = std::chrono::steady_clock;

  // Starts the agents, which dial through a proxy of their own and run `train`. The service
  // outlives this object.
  Mischief(Service* service, const std::string& train, unsigned seed);

  // Where clients are to dial.
  const std::string& client_address() const { return clients_.address(); }

  // Does so many faults, one about every second; their effects overlap. A draw that finds nothing
  // to harm, such as a rank when none runs, is no fault and is drawn again.
  void Do(int faults);
  // Everything is up and undisturbed when this returns.
  void Undo();
  // Ends the agents by SIGTERM. Their exit codes.
  std::vector<int> StopAgents();
  void StartAgents();
  // Whether each has reached the coordinator since it was started last.
  bool AllConnected() const;

  const std::map<Fault, int>& counts() const { return counts_; }
  std::vector<std::filesystem::path> AgentDirs() const;
  // The faults with times since the beginning, a line each.
  std::string Log() const;
  // What processes that have ended wrote to their error streams.
  std::string Errors() const { return errors_; }

 private:
  struct Agent {
    std::string name;
    std::vector<std::string> args;
    train::Process* process = nullptr;
    bool busy = false;  // a fault of it is not undone yet
  };

  Fault Draw();
  bool Strike(Fault fault);
  bool StrikeCoordinator(Fault fault);
  bool StrikeAgent(Fault fault);
  bool StrikeStartingAgent();
  void StopForAWhile(Agent* agent);
  bool StrikeRank(Fault fault);
  bool StrikeProxy(Fault fault);
  void AwaitDrained(Agent* agent, Clock::duration away);
  void Start(Agent* agent);
  void RunAgenda();
  void Later(Clock::duration delay, std::function<void()> what);
  void Note(const std::string& text);
  void KeepErrors(const std::string& who, train::Process& process);
  // Uniform, of seconds.
  Clock::duration Between(double least, double most);
  int Below(int bound);

  Service* const service_;
  const std::string train_;
  std::mt19937 random_;
  const Clock::time_point begin_ = Clock::now();
  Proxy agents_proxy_;
  Proxy clients_;
  std::vector<std::unique_ptr<Agent>> agents_;
  bool coordinator_busy_ = false;
  std::multimap<Clock::time_point, std::function<void()>> agenda_;
  std::map<Fault, int> counts_;
  std::vector<std::string> log_;
  std::string errors_;
};

}  // namespace lemo::coordinator
