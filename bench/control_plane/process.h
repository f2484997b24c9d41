// Child processes, and what the kernel knows of them.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace lemo::bench {

// One of our programs. Not thread-safe.
class Process {
 public:
  // Standard output is read through NextLine, standard error goes to the file.
  static absl::StatusOr<std::unique_ptr<Process>> Start(const std::vector<std::string>& words,
                                                        const std::filesystem::path& errors);
  ~Process();  // kills it, if it runs
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  // Without its end; nullopt when the output has ended. Waits.
  std::optional<std::string> NextLine();
  // Sends SIGTERM and waits. The exit code, or minus the signal that ended it.
  int Stop();
  int Wait();
  pid_t pid() const { return pid_; }

 private:
  Process(pid_t pid, int output) : pid_(pid), output_(output) {}

  const pid_t pid_;
  const int output_;
  bool ended_ = false;
  int code_ = 0;
  std::string pending_;
};

// `VmRSS` or `VmHWM` of /proc/PID/status, in bytes; 0 when it is gone.
int64_t StatusBytes(pid_t pid, const std::string& field);
// User and system time of the process and of its children whose program has the same name (an
// agent's watchdog), those that have ended not counted.
double CpuSeconds(pid_t pid);

}  // namespace lemo::bench
