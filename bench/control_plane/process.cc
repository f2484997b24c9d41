#include "bench/control_plane/process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <iterator>
#include <memory>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "common/files.h"

extern char** environ;

namespace lemo::bench {
namespace {

std::string ReadProc(pid_t pid, const std::string& name) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/", name));
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// Of one process: its program's name and its time.
std::pair<std::string, double> NameAndTime(pid_t pid) {
  const std::string stat = ReadProc(pid, "stat");
  const size_t open = stat.find('('), close = stat.rfind(')');
  if (open == stat.npos || close == stat.npos) return {};
  std::istringstream fields(stat.substr(close + 1));
  std::string skipped;
  for (int field = 3; field < 14; ++field) fields >> skipped;
  double user = 0, system = 0;
  fields >> user >> system;
  return {stat.substr(open + 1, close - open - 1),
          (user + system) / static_cast<double>(::sysconf(_SC_CLK_TCK))};
}

}  // namespace

absl::StatusOr<std::unique_ptr<Process>> Process::Start(const std::vector<std::string>& words,
                                                        const std::filesystem::path& errors) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe for", words[0]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
  posix_spawn_file_actions_addopen(&actions, 2, errors.c_str(), O_WRONLY | O_CREAT | O_APPEND,
                                   0644);
  std::vector<char*> arguments;
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  pid_t pid = 0;
  const int error =
      ::posix_spawn(&pid, words[0].c_str(), &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  ::close(ends[1]);
  if (error != 0) {
    ::close(ends[0]);
    return ErrnoStatus(error, "start", words[0]);
  }
  return std::unique_ptr<Process>(new Process(pid, ends[0]));
}

Process::~Process() {
  if (!ended_) {
    ::kill(pid_, SIGKILL);
    Wait();
  }
  ::close(output_);
}

std::optional<std::string> Process::NextLine() {
  for (;;) {
    if (const size_t end = pending_.find('\n'); end != pending_.npos) {
      std::string line = pending_.substr(0, end);
      pending_.erase(0, end + 1);
      return line;
    }
    char buffer[1 << 14];
    const ssize_t count = ::read(output_, buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return std::nullopt;
    pending_.append(buffer, static_cast<size_t>(count));
  }
}

int Process::Wait() {
  if (ended_) return code_;
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  ended_ = true;
  code_ = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  return code_;
}

int Process::Stop() {
  if (!ended_) ::kill(pid_, SIGTERM);
  return Wait();
}

int64_t StatusBytes(pid_t pid, const std::string& field) {
  std::istringstream lines(ReadProc(pid, "status"));
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(field + ":", 0) == 0) return std::stoll(line.substr(field.size() + 1)) * 1024;
  }
  return 0;
}

double CpuSeconds(pid_t pid) {
  const auto [name, own] = NameAndTime(pid);
  double seconds = own;
  std::istringstream children(ReadProc(pid, absl::StrCat("task/", pid, "/children")));
  for (pid_t child = 0; children >> child;) {
    const auto [child_name, child_seconds] = NameAndTime(child);
    if (child_name == name) seconds += child_seconds;
  }
  return seconds;
}

}  // namespace lemo::bench
