// Ends gangs when the agent cannot: because it was killed, or because it is stopped.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "worker/agent/clock.h"

namespace lemo::agent {

// A small process beside the agent. The kernel's parent-death signal reaches only the leader of a
// gang, and nothing at all happens to ranks whose agent was stopped (SIGSTOP, a debugger, a frozen
// container) while its lease runs out and the job is placed elsewhere. So the watchdog knows the
// groups and a deadline, in shared memory:
//  - past the deadline it kills the groups, whatever the agent does;
//  - when the agent has died it lets the leaders write their checkpoints, kills what their groups
//    leave, kills each at the deadline or after its patience, and ends.
// The public interface belongs to one thread.
class Watchdog {
 public:
  // Forks: to be called while the process has one thread.
  static absl::StatusOr<std::unique_ptr<Watchdog>> Start();
  // The watchdog ends, at once when it watches nothing.
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // Until when groups may live. kNever at first.
  void SetDeadline(Instant deadline);
  Instant Deadline() const;
  // A group by its leader, which may take `patience` for its checkpoint when the agent has died.
  // ResourceExhausted when it watches 256 already.
  absl::Status Watch(pid_t group, BootClock::duration patience = std::chrono::seconds(20));
  // Does nothing for a group that is not watched.
  void Unwatch(pid_t group);

 private:
  struct Board;

  Watchdog(Board* board, pid_t pid, int lifeline) : board_(board), pid_(pid), lifeline_(lifeline) {}

  Board* board_;
  pid_t pid_;
  int lifeline_;  // the end of a pipe that the kernel closes when the agent dies
};

}  // namespace lemo::agent
