// A child process whose standard output is read line by line while it runs.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace lemo::train {

struct ProcessOptions {
  std::filesystem::path directory;  // to run in
  // No file of the child grows beyond this, which stands in for a full disk.
  std::optional<uint64_t> file_size_limit;
  // Bytes that the child may write to, libraries and stacks included (RLIMIT_DATA): the kernel
  // gives no more, which stands in for a container's limit.
  std::optional<uint64_t> data_limit;
  // Descriptor 3 of the child writes to this file.
  std::filesystem::path fd3;
};

// Killed, at the latest, when destroyed.
class Process {
 public:
  using Clock = std::chrono::steady_clock;

  Process(const std::string& program, const std::vector<std::string>& args,
          const ProcessOptions& options);
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  // The next line of standard output, without its end; nothing when the output has ended or
  // `deadline` has come before a whole line has.
  std::optional<std::string> NextLine(Clock::time_point deadline);
  void Signal(int signal) const;
  // Its number, for who must look into /proc; valid until Wait has come back.
  pid_t pid() const { return pid_; }
  // Whether it has not ended yet. Does not block.
  bool Running();
  // The exit code, or minus the signal that ended it. Reads no output: ask for the lines first.
  int Wait();
  // What it wrote to standard error, once it has ended.
  std::string Errors();

 private:
  pid_t pid_ = -1;
  int output_ = -1;
  int errors_ = -1;
  int status_ = 0;
  bool ended_ = false;
  std::string pending_;
};

}  // namespace lemo::train
