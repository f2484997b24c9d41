// The processes of one attempt on this machine.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/agent/clock.h"

namespace lemo::agent {

struct GangOptions {
  std::vector<std::string> command;      // program and arguments
  std::vector<std::string> environment;  // NAME=VALUE, beside or over the agent's own
  std::filesystem::path log;             // its output and error streams are appended to this
  // Asks the leader to let the gang write its checkpoint and end; also what the kernel sends it
  // when the agent dies. SIGTERM goes to the whole group, another signal to the leader alone.
  int stop_signal = SIGTERM;
  // Called with the leader's number while it waits to become the program, which it never does if
  // this fails, or if the agent is gone or `not_after` is over when it could: an agent that was
  // stopped (SIGSTOP) anywhere in Start leaves no program that nobody knows of.
  std::function<absl::Status(pid_t leader)> before_exec;
  Instant not_after = kNever;
};

// A leader and whatever it starts (GangMark says how they are known). One rank is its own leader;
// of several it is what starts them.
//
// None of them outlives the gang: all are killed when the leader has ended, and when this object is
// destroyed. When the agent dies, the kernel sends the leader the stop signal. That signal comes
// when the *thread* that called Start ends, so Start belongs to a thread that lives as long as the
// process. Not thread-safe.
class Gang {
 public:
  // NotFound, PermissionDenied or Internal when the program cannot be started, or what
  // `before_exec` says; nothing runs then.
  static absl::StatusOr<std::unique_ptr<Gang>> Start(const GangOptions& options);
  // Kills what is left and waits for it.
  ~Gang();
  Gang(const Gang&) = delete;
  Gang& operator=(const Gang&) = delete;

  pid_t leader() const { return leader_; }  // also the number of its group and session
  // Readable when the leader has ended; -1 when that was noticed.
  int exit_fd() const { return exit_fd_; }
  // The read end of the pipe that is the leader's descriptor 3; non-blocking. Owned by the gang.
  int events_fd() const { return events_fd_; }

  // Sends the stop signal, the first time only: lemo-train takes a second one for "at once".
  void AskToStop();
  // SIGKILL to all.
  void Kill();
  // Reaps. When the leader has ended, kills the rest. True when all are gone.
  bool Poll(Instant now);
  // The leader's status as waitpid tells it; nullopt while it lives.
  std::optional<int> status() const { return status_; }
  // Whether Poll is to be called again soon, though no descriptor will say so.
  bool sweeping() const { return status_.has_value() && !gone_; }

 private:
  Gang(pid_t leader, int exit_fd, int events_fd, int stop_signal)
      : leader_(leader), exit_fd_(exit_fd), events_fd_(events_fd), stop_signal_(stop_signal) {}

  pid_t leader_;
  int exit_fd_;
  int events_fd_;
  int stop_signal_;
  bool asked_ = false;
  bool gone_ = false;
  std::optional<int> status_;
  std::set<pid_t> killed_;
  Instant swept_since_{};
};

// Ends a group that an earlier agent left behind, if the process `leader` that was started at
// `start_ticks` still lives or has left others of its group: waits up to `patience` for its
// checkpoint (the kernel sent it SIGTERM when that agent died), then kills. The group is gone on
// return.
void EndLeftover(pid_t leader, uint64_t start_ticks, BootClock::duration patience);

}  // namespace lemo::agent
