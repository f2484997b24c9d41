// The processes of one attempt on this machine.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/agent/clock.h"

namespace lemo::agent {

struct GangOptions {
  std::vector<std::string> command;      // program and arguments
  std::vector<std::string> environment;  // NAME=VALUE, beside or over the agent's own
  std::filesystem::path log;             // its output and error streams are appended to this
};

// A leader and whatever it starts, in a process group of their own. One rank is its own leader; for
// several the leader would be what starts them.
//
// None of them outlives the gang: the group is killed when the leader has ended, and when this
// object is destroyed. When the agent dies, the kernel sends the leader SIGTERM. That signal comes
// when the *thread* that called Start ends, so Start belongs to a thread that lives as long as the
// process. Not thread-safe.
class Gang {
 public:
  // NotFound, PermissionDenied or Internal when the program cannot be started; nothing runs then.
  static absl::StatusOr<std::unique_ptr<Gang>> Start(const GangOptions& options);
  // Kills what is left and waits for it.
  ~Gang();
  Gang(const Gang&) = delete;
  Gang& operator=(const Gang&) = delete;

  pid_t leader() const { return leader_; }  // also the number of the group
  // Readable when the leader has ended; -1 when that was noticed.
  int exit_fd() const { return exit_fd_; }
  // The read end of the pipe that is the leader's descriptor 3; non-blocking. Owned by the gang.
  int events_fd() const { return events_fd_; }

  // SIGTERM to the group, the first time only: lemo-train takes a second one for "at once".
  void AskToStop();
  // SIGKILL to the group.
  void Kill();
  // Reaps. When the leader has ended, kills the rest. True when all are gone.
  bool Poll(Instant now);
  // The leader's status as waitpid tells it; nullopt while it lives.
  std::optional<int> status() const { return status_; }
  // Whether Poll is to be called again soon, though no descriptor will say so.
  bool sweeping() const { return status_.has_value() && !gone_; }

 private:
  Gang(pid_t leader, int exit_fd, int events_fd)
      : leader_(leader), exit_fd_(exit_fd), events_fd_(events_fd) {}

  pid_t leader_;
  int exit_fd_;
  int events_fd_;
  bool asked_ = false;
  bool gone_ = false;
  std::optional<int> status_;
  Instant swept_since_{};
};

// Ends a group that an earlier agent left behind, if the process `leader` that was started at
// `start_ticks` still lives or has left others of its group: waits up to `patience` for its
// checkpoint (the kernel sent it SIGTERM when that agent died), then kills. The group is gone on
// return.
void EndLeftover(pid_t leader, uint64_t start_ticks, BootClock::duration patience);

}  // namespace lemo::agent
