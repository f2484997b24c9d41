#include "tests/integration/cli/run_lemo.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <sstream>
#include <thread>

#include "common/files.h"

namespace lemo::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::seconds kPatience{60};

std::string ReadAll(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

Lemo::Lemo(const fs::path& directory, const std::string& coordinator,
           const std::vector<std::string>& args,
           const std::map<std::string, std::string>& environment, const std::string& program)
    : directory_(directory) {
  static int count = 0;
  stem_ = ".lemo-" + std::to_string(++count);
  std::vector<std::string> words = {program.empty() ? LEMO_PROGRAM : program};
  words.insert(words.end(), args.begin(), args.end());
  std::vector<std::string> variables = {"HOME=" + directory.string(), "LC_ALL=C",
                                        "PATH=/usr/bin:/bin", "LEMO_COORDINATOR=" + coordinator};
  for (const auto& [name, value] : environment) variables.push_back(name + "=" + value);
  std::vector<char*> argv, envp;
  for (std::string& word : words) argv.push_back(word.data());
  for (std::string& variable : variables) envp.push_back(variable.data());
  argv.push_back(nullptr);
  envp.push_back(nullptr);
  const std::string out = (directory / (stem_ + ".out")).string();
  const std::string err = (directory / (stem_ + ".err")).string();
  const std::string where = directory.string();
  pid_ = ::fork();
  if (pid_ != 0) return;
  // Only what may be called between fork and exec.
  if (::chdir(where.c_str()) != 0) ::_exit(125);
  ::dup2(::open("/dev/null", O_RDONLY), STDIN_FILENO);
  ::dup2(::open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644), STDOUT_FILENO);
  ::dup2(::open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644), STDERR_FILENO);
  for (int fd = 3; fd < 1024; ++fd) ::close(fd);
  ::execve(argv[0], argv.data(), envp.data());
  ::_exit(126);
}

Lemo::~Lemo() {
  if (Ended()) return;
  Signal(SIGKILL);
  ::waitpid(pid_, &status_, 0);
}

bool Lemo::Ended() {
  if (!ended_) ended_ = ::waitpid(pid_, &status_, WNOHANG) == pid_;
  return ended_;
}

void Lemo::Signal(int signal) { ::kill(pid_, signal); }

Outcome Lemo::Wait() {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (!Ended()) {
    if (std::chrono::steady_clock::now() > end) {
      ADD_FAILURE() << "lemo did not end";
      Signal(SIGKILL);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return {WIFSIGNALED(status_) ? 128 + WTERMSIG(status_) : WEXITSTATUS(status_), Out(),
          ReadAll(directory_ / (stem_ + ".err"))};
}

std::string Lemo::Out() const { return ReadAll(directory_ / (stem_ + ".out")); }

bool Lemo::WaitForOut(const std::string& text) {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (Out().find(text) == std::string::npos) {
    if (Ended() || std::chrono::steady_clock::now() > end) {
      return Out().find(text) != std::string::npos;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

CliTest::CliTest()
    : directory_(fs::path(testing::TempDir()) /
                 ("lemo_cli_" + std::to_string(::getpid()) + "_" +
                  testing::UnitTest::GetInstance()->current_test_info()->name())) {
  fs::remove_all(directory_);
  fs::create_directories(directory_);
  server_ = std::make_unique<FakeServer>(&state_);
}

CliTest::~CliTest() {
  server_.reset();
  fs::remove_all(directory_);
}

fs::path CliTest::Write(const std::string& name, const std::string& text) {
  const fs::path path = directory_ / name;
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

std::string CliTest::Read(const fs::path& path) const { return ReadAll(directory_ / path); }

void CliTest::AddSucceededJob(const std::map<std::string, std::string>& artifacts) {
  const std::lock_guard lock(state_.mutex);
  lemo::v1::Job& job = state_.jobs["jobs/a"];
  job.set_name("jobs/a");
  job.set_state(lemo::v1::Job::SUCCEEDED);
  for (const auto& [path, bytes] : artifacts) {
    lemo::v1::Artifact& artifact = *job.add_artifacts();
    artifact.set_path(path);
    artifact.set_bytes(static_cast<int64_t>(bytes.size()));
    artifact.set_sha256(Sha256Hex(bytes));
    state_.artifacts[path] = bytes;
  }
}

}  // namespace lemo::cli
