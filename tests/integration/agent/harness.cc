#include "tests/integration/agent/harness.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "common/files.h"
#include "worker/agent/process_info.h"

namespace lemo::agent {

namespace fs = std::filesystem;

AgentTest::AgentTest() {
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);  // as lemo-worker's main does
  const auto* test = testing::UnitTest::GetInstance()->current_test_info();
  directory_ =
      fs::path(testing::TempDir()) / ("lemo_agent_" + std::string(test->test_suite_name()) + "_" +
                                      test->name() + "_" + std::to_string(::getpid()));
  fs::remove_all(directory_);
  fs::create_directories(directory_ / "models" / "tiny");
  std::ofstream(directory_ / "models" / "tiny" / "config.json") << "{}";
}

AgentTest::~AgentTest() {
  StopAgent();
  if (worker_pid_ > 0) EndWorker(SIGKILL);
  std::error_code ignored;
  fs::remove_all(directory_, ignored);
}

AgentOptions AgentTest::Options() const {
  AgentOptions options;
  options.coordinator = coordinator_.address();
  options.directory = directory_ / "agent";
  options.host = "test";
  options.version = "1";
  options.train = LEMO_FAKE_RANK;
  options.program = LEMO_WORKER;
  options.cuda = false;
  options.model_roots = {directory_ / "models"};
  return options;
}

void AgentTest::StartAgent() {
  auto agent = Agent::Create(Options(), nullptr);
  ASSERT_TRUE(agent.ok()) << agent.status();
  agent_ = *std::move(agent);
  thread_ = std::thread([this] { agent_->Run(); });
}

void AgentTest::StopAgent() {
  if (agent_ == nullptr) return;
  agent_->Kill();
  thread_.join();
  agent_ = nullptr;
  EXPECT_TRUE(coordinator_.WaitForLoss());
}

void AgentTest::DrainAgent() {
  agent_->Drain();
  thread_.join();
  agent_ = nullptr;
}

void AgentTest::StartWorker() {
  const AgentOptions options = Options();
  std::vector<std::string> words = {options.program.string(),
                                    "--coordinator",
                                    options.coordinator,
                                    "--dir",
                                    options.directory.string(),
                                    "--train",
                                    options.train.string(),
                                    "--cuda",
                                    "none",
                                    "--cpu-devices",
                                    std::to_string(options.cpu_devices)};
  for (const fs::path& root : options.model_roots) {
    words.insert(words.end(), {"--model-root", root.string()});
  }
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  worker_pid_ = ::fork();
  ASSERT_GE(worker_pid_, 0);
  if (worker_pid_ == 0) {
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
}

int AgentTest::EndWorker(int signal) {
  ::kill(worker_pid_, signal);
  int status = 0;
  ::waitpid(worker_pid_, &status, 0);
  worker_pid_ = -1;
  return status;
}

lemo::v1::Assignment AgentTest::MakeAssignment(const std::string& id, const std::string& script,
                                               int attempt) {
  lemo::v1::Assignment assignment;
  assignment.mutable_id()->set_job("jobs/" + id);
  assignment.mutable_id()->set_attempt(attempt);
  assignment.mutable_run()->mutable_model()->set_path("models/tiny");
  assignment.mutable_run()->mutable_data()->add_train()->set_path("files/" + id);
  assignment.mutable_run()->mutable_tuner()->mutable_full();
  assignment.add_devices(0);
  assignment.set_ranks(1);
  *assignment.add_files() = coordinator_.AddFile("files/" + id, script);
  assignment.set_model_path((directory_ / "models" / "tiny").string());
  return assignment;
}

lemo::v1::AttemptId AgentTest::Assign(const std::string& id, const std::string& script,
                                      int attempt) {
  const lemo::v1::Assignment assignment = MakeAssignment(id, script, attempt);
  coordinator_.Assign(assignment);
  return assignment.id();
}

fs::path AgentTest::JobDirectory(const std::string& id) const {
  return directory_ / "agent" / "jobs" / id;
}

bool AgentTest::WaitUntilGone(const fs::path& path) {
  for (int i = 0; i < 3000; ++i) {
    if (!fs::exists(path)) return true;
    ::poll(nullptr, 0, 10);
  }
  return false;
}

bool AgentTest::WaitUntilDead(pid_t pid) {
  const int fd = OpenPidfd(pid);
  if (fd < 0) return true;
  pollfd poll{.fd = fd, .events = POLLIN};
  const bool dead = ::poll(&poll, 1, 30'000) == 1;
  ::close(fd);
  return dead;
}

pid_t AgentTest::PidIn(const KnownAttempt& attempt, const std::string& phase) {
  pid_t pid = 0;
  for (const lemo::v1::RunEvent& event : attempt.events) {
    if (event.phase().name() == phase) pid = std::stoi(event.phase().detail());
  }
  return pid;
}

std::function<bool(const KnownAttempt&)> HasPhase(const std::string& name) {
  return [name](const KnownAttempt& attempt) {
    for (const lemo::v1::RunEvent& event : attempt.events) {
      if (event.phase().name() == name) return true;
    }
    return false;
  };
}

}  // namespace lemo::agent
