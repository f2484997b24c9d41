// The processes that a test has started, however indirectly, found by a mark in their environment.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

namespace lemo::coordinator {

struct MarkedProcess {
  pid_t pid = 0;
  std::string name;                // as the kernel has it
  std::vector<std::string> words;  // its command line
  std::shared_ptr<const int> fd;   // a pidfd: no later process of the same number is meant

  bool Has(const std::string& word) const;
  // Whether the first argument lies in that directory, at any depth.
  bool WorksIn(const std::string& directory) const;
  void Signal(int signal) const;
};

// Puts LEMO_FAULT_MARK into this process's environment, which those that it starts inherit. To be
// called while it has one thread.
void MarkThisProcess();
// All that live but this one. Zombies do not.
std::vector<MarkedProcess> MarkedProcesses();

// From now on no file of the process grows beyond `bytes`; -1: any size again.
void LimitFiles(pid_t pid, int64_t bytes);

}  // namespace lemo::coordinator
