#include "tests/e2e/train/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

namespace lemo::train {
namespace {

// Between fork and exec.
[[noreturn]] void BecomeProgram(const std::vector<char*>& argv, const ProcessOptions& options,
                                int output, int errors) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // a test that is killed leaves nothing behind
  if (!options.directory.empty() && ::chdir(options.directory.c_str()) != 0) ::_exit(126);
  ::dup2(output, STDOUT_FILENO);
  ::dup2(errors, STDERR_FILENO);
  if (!options.fd3.empty()) {
    const int file = ::open(options.fd3.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file < 0) ::_exit(126);
    if (file != 3) ::dup2(file, 3);
    if (file == 3) ::fcntl(3, F_SETFD, 0);
  }
  const auto confine = [](int resource, const std::optional<uint64_t>& bytes) {
    if (!bytes) return;
    rlimit limit = {};
    limit.rlim_cur = limit.rlim_max = *bytes;
    ::setrlimit(resource, &limit);
  };
  confine(RLIMIT_FSIZE, options.file_size_limit);
  confine(RLIMIT_DATA, options.data_limit);
  // OpenMP's threads would spin against those of other tests on the same cores.
  ::setenv("OMP_WAIT_POLICY", "passive", /*overwrite=*/0);
  // Nor is what a person has calibrated the test's, unless it says so.
  ::setenv("LEMO_RATES", "", /*overwrite=*/0);
  ::execv(argv[0], argv.data());
  ::_exit(127);
}

}  // namespace

Process::Process(const std::string& program, const std::vector<std::string>& args,
                 const ProcessOptions& options) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    ADD_FAILURE() << "no pipe";
    return;
  }
  // Not a file on the disk, so that the file size limit does not hide messages.
  errors_ = ::memfd_create("errors", MFD_CLOEXEC);
  std::vector<std::string> words = {program};
  words.insert(words.end(), args.begin(), args.end());
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_ = ::fork();
  if (pid_ == 0) BecomeProgram(argv, options, ends[1], errors_);
  ::close(ends[1]);
  output_ = ends[0];
  ended_ = pid_ < 0;
}

Process::~Process() {
  if (!ended_) {
    Signal(SIGKILL);
    Wait();
  }
  if (output_ >= 0) ::close(output_);
  if (errors_ >= 0) ::close(errors_);
}

std::optional<std::string> Process::NextLine(Clock::time_point deadline) {
  while (true) {
    if (const size_t end = pending_.find('\n'); end != std::string::npos) {
      std::string line = pending_.substr(0, end);
      pending_.erase(0, end + 1);
      return line;
    }
    const auto left = deadline - Clock::now();
    if (left <= Clock::duration::zero()) return std::nullopt;
    const auto nanoseconds = std::chrono::duration_cast<std::chrono::nanoseconds>(left).count();
    const timespec timeout = {.tv_sec = nanoseconds / 1'000'000'000,
                              .tv_nsec = nanoseconds % 1'000'000'000};
    pollfd waiting = {.fd = output_, .events = POLLIN, .revents = 0};
    const int ready = ::ppoll(&waiting, 1, &timeout, nullptr);
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return std::nullopt;
    char buffer[65536];
    const ssize_t got = ::read(output_, buffer, sizeof(buffer));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return std::nullopt;
    pending_.append(buffer, static_cast<size_t>(got));
  }
}

void Process::Signal(int signal) const {
  if (!ended_) ::kill(pid_, signal);
}

bool Process::Running() {
  siginfo_t info = {};
  return !ended_ &&
         ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
         info.si_pid == 0;
}

int Process::Wait() {
  if (!ended_) {
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    ended_ = true;
    status_ = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  return status_;
}

std::string Process::Errors() {
  std::string text;
  char buffer[4096];
  off_t offset = 0;
  for (ssize_t got; (got = ::pread(errors_, buffer, sizeof(buffer), offset)) > 0; offset += got) {
    text.append(buffer, static_cast<size_t>(got));
  }
  return text;
}

}  // namespace lemo::train
