// An agent in this process, in a directory of the test's own, and the assignments that it is given.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "tests/integration/agent/fake_coordinator.h"
#include "worker/agent/agent.h"

namespace lemo::agent {

class AgentTest : public testing::Test {
 protected:
  AgentTest();
  ~AgentTest() override;

  virtual AgentOptions Options() const;
  void StartAgent();
  // As a crash would, but for processes, which are killed.
  void StopAgent();
  // Asks the agent to drain and waits until it has left.
  void DrainAgent();

  // The agent as a process of its own, lemo-worker. It is killed at the end of the test.
  void StartWorker();
  // Sends the signal and waits. Its status as waitpid tells it.
  int EndWorker(int signal);

  // Of `jobs/{id}`, whose one training file, `files/{id}`, holds `script` for the fake rank.
  lemo::v1::Assignment MakeAssignment(const std::string& id, const std::string& script,
                                      int attempt = 1);
  // Assigns it.
  lemo::v1::AttemptId Assign(const std::string& id, const std::string& script, int attempt = 1);

  std::filesystem::path JobDirectory(const std::string& id) const;
  // Waits until `path` is no more, which the agent sees to without telling anybody.
  static bool WaitUntilGone(const std::filesystem::path& path);
  // Waits for the end of a process that need not be this one's child.
  static bool WaitUntilDead(pid_t pid);
  // The number in the last phase event of that name.
  static pid_t PidIn(const KnownAttempt& attempt, const std::string& phase);

  FakeCoordinator coordinator_;
  std::filesystem::path directory_;
  std::unique_ptr<Agent> agent_;
  std::thread thread_;
  pid_t worker_pid_ = -1;
};

std::function<bool(const KnownAttempt&)> HasPhase(const std::string& name);

}  // namespace lemo::agent
