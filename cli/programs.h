// The other programs of LeMo: where they lie, and running them as children.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace lemo::cli {

// Beside this program as installed, or where a build tree has it; nothing when it is in neither.
// `name` is lemo-coordinator, lemo-worker or lemo-train.
std::optional<std::filesystem::path> FindProgram(const std::string& name);

// The same from the directory of another program.
std::optional<std::filesystem::path> FindProgramFrom(const std::filesystem::path& directory,
                                                     const std::string& name);

// A child in a process group of its own, so that a terminal's Ctrl-C is ours to pass on. It gets
// SIGTERM when this program dies, whatever of. Movable; the destructor kills and reaps a child that
// is still there.
class Child {
 public:
  // What it prints is appended to `log`. It must be called on the main thread, with which the child
  // is bound to die.
  static absl::StatusOr<Child> Start(const std::filesystem::path& program,
                                     const std::vector<std::string>& args,
                                     const std::filesystem::path& log);
  Child(Child&& other) noexcept;
  Child& operator=(Child&& other) = delete;
  ~Child();

  // Whether it still runs.
  bool Running();
  void Signal(int signal);
  // Waits; false when it still runs after `patience`.
  bool Wait(absl::Duration patience);
  // "exit code 2", "signal 9"; "" while it runs.
  std::string End() const;

  pid_t pid() const { return pid_; }

 private:
  Child(pid_t pid) : pid_(pid) {}

  pid_t pid_;
  std::optional<int> wait_status_;
};

// The last `lines` lines of a text file, "" when there is none.
std::string TailOf(const std::filesystem::path& file, int lines);

}  // namespace lemo::cli
