// Metrics of the agent and of its ranks.
//
// The loop says what is, in one piece, before each of its waits; scrapes read the last piece, so
// that they never touch the loop's objects nor wait for it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "common/metrics.h"
#include "lemo/v1/cluster_service.pb.h"
#include "lemo/v1/run_event.pb.h"
#include "lemo/v1/worker_service.pb.h"
#include "worker/agent/clock.h"

namespace lemo::agent {

struct AttemptStatus {
  enum class State { kFetching, kRunning, kHandingOver, kEnded };
  std::string job;
  State state = State::kEnded;
  // While it runs: the group of its processes, its devices as indices of the agent's list, and what
  // rank 0 said last.
  pid_t group = 0;
  std::vector<int> devices;
  std::optional<lemo::v1::StepEvent> step;
  std::optional<double> recall;       // mean of the layers, when it was measured last
  std::optional<int64_t> bad_blocks;  // of all its steps; nullopt while none has dropped rows
  std::optional<Instant> checkpoint;  // when it was told
  int64_t waiting_events = 0;         // that the coordinator has not acknowledged
  int64_t spool_bytes = 0;
};

struct AgentStatus {
  bool connected = false;
  bool draining = false;
  std::optional<Instant> lease_renewed;  // nullopt before the first lease
  BootClock::duration lease{};
  std::vector<lemo::v1::Device> devices;
  int64_t host_memory_bytes = 0;
  int64_t bases_bytes = 0;
  std::vector<AttemptStatus> attempts;
};

// All families that lemo-worker serves.
metrics::Families MetricFamilies();

// The series that tell of the agent and its attempts. Asks /proc for the processes of ranks.
void AddAgentSamples(const AgentStatus& status, Instant now, metrics::Samples* samples);

// Thread-safe.
class Metrics {
 public:
  // `directory` is the agent's own; `version` the program's.
  Metrics(const std::filesystem::path& directory, const std::string& version);

  void Publish(AgentStatus status);
  void OnGangStarted();
  void OnAttemptEnded(const lemo::v1::AttemptEnded& ended);

  const std::shared_ptr<metrics::Registry>& registry() const { return registry_; }

 private:
  struct Published {
    std::mutex mutex;
    AgentStatus status;
  };
  const std::shared_ptr<Published> published_ = std::make_shared<Published>();
  const std::shared_ptr<metrics::Registry> registry_;
};

}  // namespace lemo::agent
