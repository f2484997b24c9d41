#include "cli/programs.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <map>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/files.h"

namespace lemo::cli {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxLogBytes = int64_t{1} << 30;

bool IsExecutable(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error) && ::access(path.c_str(), X_OK) == 0;
}

// Only what may be called between fork and exec.
[[noreturn]] void Become(pid_t parent, const char* program, char* const* argv, int log, int null) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != parent) ::_exit(126);  // it died before the line above
  ::dup2(null, STDIN_FILENO);
  ::dup2(log, STDOUT_FILENO);
  ::dup2(log, STDERR_FILENO);
  ::execv(program, argv);
  ::_exit(127);
}

}  // namespace

std::optional<fs::path> FindProgramFrom(const fs::path& directory, const std::string& name) {
  static const std::map<std::string, std::string>& folders =
      *new std::map<std::string, std::string>{{"lemo-coordinator", "../coordinator/runtime"},
                                              {"lemo-worker", "../worker/agent"},
                                              {"lemo-train", "../worker/train"}};
  if (IsExecutable(directory / name)) return directory / name;
  const auto folder = folders.find(name);
  if (folder == folders.end()) return std::nullopt;
  const fs::path in_build = (directory / folder->second / name).lexically_normal();
  if (IsExecutable(in_build)) return in_build;
  return std::nullopt;
}

std::optional<fs::path> FindProgram(const std::string& name) {
  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  if (error) return std::nullopt;
  return FindProgramFrom(self.parent_path(), name);
}

absl::StatusOr<Child> Child::Start(const fs::path& program, const std::vector<std::string>& args,
                                   const fs::path& log) {
  const int log_fd = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (log_fd < 0) return ErrnoStatus(errno, "open", log);
  absl::Cleanup close_log = [log_fd] { ::close(log_fd); };
  const int null_fd = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (null_fd < 0) return ErrnoStatus(errno, "open", "/dev/null");
  absl::Cleanup close_null = [null_fd] { ::close(null_fd); };

  std::string name = program.string();
  std::vector<std::string> words = args;
  std::vector<char*> argv = {name.data()};
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return ErrnoStatus(errno, "start", program);
  if (pid == 0) Become(parent, name.c_str(), argv.data(), log_fd, null_fd);
  return Child(pid);
}

Child::Child(Child&& other) noexcept
    : pid_(std::exchange(other.pid_, 0)), wait_status_(std::move(other.wait_status_)) {}

Child::~Child() {
  if (pid_ == 0) return;
  if (Running()) Signal(SIGKILL);
  while (!wait_status_) Wait(absl::Seconds(1));
}

bool Child::Running() {
  if (wait_status_) return false;
  int status = 0;
  const pid_t ended = ::waitpid(pid_, &status, WNOHANG);
  if (ended == pid_ || (ended < 0 && errno == ECHILD)) wait_status_ = status;
  return !wait_status_;
}

void Child::Signal(int signal) {
  if (Running()) ::kill(pid_, signal);
}

bool Child::Wait(absl::Duration patience) {
  const absl::Time end = absl::Now() + patience;
  while (Running()) {
    if (absl::Now() >= end) return false;
    absl::SleepFor(absl::Milliseconds(10));
  }
  return true;
}

std::string Child::End() const {
  if (!wait_status_) return "";
  if (WIFSIGNALED(*wait_status_)) return absl::StrCat("signal ", WTERMSIG(*wait_status_));
  return absl::StrCat("exit code ", WEXITSTATUS(*wait_status_));
}

std::string TailOf(const fs::path& file, int lines) {
  const absl::StatusOr<std::string> text = ReadFile(file, kMaxLogBytes);
  if (!text.ok() || text->empty()) return "";
  size_t from = text->size() - 1;  // the last line break ends the last line
  for (int i = 0; i < lines && from != std::string::npos && from > 0; ++i) {
    from = text->rfind('\n', from - 1);
  }
  return text->substr(from == std::string::npos || from == 0 ? 0 : from + 1);
}

}  // namespace lemo::cli
