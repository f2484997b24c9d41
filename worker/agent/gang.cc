#include "worker/agent/gang.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <iostream>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "worker/agent/process_info.h"

namespace lemo::agent {
namespace {

constexpr int kEventsFd = 3;
constexpr int kFaultFd = 4;  // closed by a successful exec; otherwise carries errno
// A killed process can hang in the kernel (a dead network file system); the agent goes on then.
constexpr auto kSweepPatience = std::chrono::seconds(10);

// Everything a child needs, made before fork: after it, in a program with threads, only system
// calls are safe.
struct Launch {
  std::vector<char*> argv;
  std::vector<char*> environment;
  char* mark_digits;  // in the environment
  pid_t parent;
  int parent_death_signal;
  int log;
  int events;
  int fault;
  int go[2];  // a byte comes, or the end when it is not to go on
  Instant not_after;
};

[[noreturn]] void BecomeRank(const Launch& launch) {
  ::setsid();
  ::prctl(PR_SET_PDEATHSIG, launch.parent_death_signal);
  // The agent may have died before the line above.
  if (::getppid() != launch.parent) ::_exit(127);
  ::close(launch.go[1]);
  char byte;
  if (::read(launch.go[0], &byte, 1) != 1) ::_exit(127);
  for (int signal : {SIGTERM, SIGINT, SIGPIPE, SIGHUP, SIGCHLD, SIGUSR1}) {
    ::signal(signal, SIG_DFL);
  }
  char* digit = launch.mark_digits;
  for (pid_t rest = ::getpid(); rest > 0; rest /= 10) *--digit = static_cast<char>('0' + rest % 10);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  const int null = ::open("/dev/null", O_RDONLY);
  if (null > STDIN_FILENO) ::dup2(null, STDIN_FILENO);
  ::dup2(launch.log, STDOUT_FILENO);
  ::dup2(launch.log, STDERR_FILENO);
  ::dup2(launch.events, kEventsFd);
  ::dup3(launch.fault, kFaultFd, O_CLOEXEC);
  ::syscall(SYS_close_range, kFaultFd + 1, ~0U, 0);
  int error = ETIME;
  if (BootClock::now() < launch.not_after) {
    ::execve(launch.argv[0], launch.argv.data(), launch.environment.data());
    error = errno;
  }
  [[maybe_unused]] const ssize_t written = ::write(kFaultFd, &error, sizeof(error));
  ::_exit(127);
}

// Environment of the agent with `changes` over it.
std::vector<std::string> Environment(const std::vector<std::string>& changes) {
  std::vector<std::string> all = changes;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const std::string name = text.substr(0, text.find('=') + 1);
    bool changed = false;
    for (const std::string& change : changes) changed |= change.starts_with(name);
    if (!changed) all.push_back(text);
  }
  return all;
}

std::vector<char*> Pointers(std::vector<std::string>& words) {
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  return pointers;
}

// Above the descriptors that the child's own take the place of.
int MoveUp(int fd) {
  const int moved = ::fcntl(fd, F_DUPFD_CLOEXEC, 16);
  ::close(fd);
  return moved;
}

struct Pipe {
  int read = -1;
  int write = -1;
  ~Pipe() {
    if (read >= 0) ::close(read);
    if (write >= 0) ::close(write);
  }
  bool Open() {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) return false;
    read = MoveUp(ends[0]);
    write = MoveUp(ends[1]);
    return read >= 0 && write >= 0;
  }
};

// Waits for the end of a process that is not this one's child.
bool WaitFor(pid_t pid, BootClock::duration patience) {
  const int fd = OpenPidfd(pid);
  if (fd < 0) return true;
  absl::Cleanup close = [fd] { ::close(fd); };
  const Instant deadline = BootClock::now() + patience;
  for (;;) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - BootClock::now()).count();
    pollfd poll{.fd = fd, .events = POLLIN};
    const int ready = ::poll(&poll, 1, left > 0 ? static_cast<int>(left) : 0);
    if (ready > 0) return true;
    if (ready == 0 && left <= 0) return false;
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Gang>> Gang::Start(const GangOptions& options) {
  std::vector<std::string> words = options.command;
  std::vector<std::string> changes = options.environment;
  changes.push_back(GangMark(0));  // the leader puts its own number there
  std::vector<std::string> environment = Environment(changes);
  std::string& mark = environment[changes.size() - 1];
  Pipe events, fault, go;
  if (!events.Open() || !fault.Open() || !go.Open())
    return ErrnoStatus(errno, "make a pipe for", words[0]);
  ::fcntl(events.read, F_SETFL, O_NONBLOCK);
  int log = ::open(options.log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (log < 0) return ErrnoStatus(errno, "open", options.log);
  log = MoveUp(log);
  absl::Cleanup close_log = [log] { ::close(log); };
  const Launch launch{.argv = Pointers(words),
                      .environment = Pointers(environment),
                      .mark_digits = mark.data() + mark.size(),
                      .parent = ::getpid(),
                      .parent_death_signal = options.stop_signal,
                      .log = log,
                      .events = events.write,
                      .fault = fault.write,
                      .go = {go.read, go.write},
                      .not_after = options.not_after};
  const pid_t pid = ::fork();
  if (pid < 0) return ErrnoStatus(errno, "fork for", words[0]);
  if (pid == 0) BecomeRank(launch);
  if (const absl::Status status = options.before_exec ? options.before_exec(pid) : absl::OkStatus();
      !status.ok()) {
    ::close(std::exchange(go.write, -1));
    ::waitpid(pid, nullptr, 0);
    return status;
  }
  [[maybe_unused]] const ssize_t went = ::write(go.write, "", 1);
  ::close(std::exchange(go.write, -1));
  ::close(std::exchange(events.write, -1));
  ::close(std::exchange(fault.write, -1));
  int error = 0;
  ssize_t got;
  do {
    got = ::read(fault.read, &error, sizeof(error));
  } while (got < 0 && errno == EINTR);
  if (got == sizeof(error)) {
    ::waitpid(pid, nullptr, 0);
    return ErrnoStatus(error, "start", words[0]);
  }
  return std::unique_ptr<Gang>(
      new Gang(pid, OpenPidfd(pid), std::exchange(events.read, -1), options.stop_signal));
}

Gang::~Gang() {
  Kill();
  if (!status_) {
    int status = 0;
    while (::waitpid(leader_, &status, 0) < 0 && errno == EINTR) {
    }
    status_ = status;
  }
  const Instant deadline = BootClock::now() + kSweepPatience;
  while (!Poll(BootClock::now()) && BootClock::now() < deadline) {
    ::poll(nullptr, 0, 5);
  }
  if (exit_fd_ >= 0) ::close(exit_fd_);
  ::close(events_fd_);
}

void Gang::AskToStop() {
  if (std::exchange(asked_, true) || status_) return;
  // A group's SIGTERM reaches what a rank has started, too; other signals are an agreement with the
  // leader alone.
  ::kill(stop_signal_ == SIGTERM ? -leader_ : leader_, stop_signal_);
}

void Gang::Kill() {
  if (!gone_) KillGang(leader_, &killed_);
}

bool Gang::Poll(Instant now) {
  if (gone_) return true;
  if (!status_) {
    siginfo_t info = {};
    // The leader is left unreaped until its group is killed, so that its number is not another's.
    if (::waitid(P_PID, leader_, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0) {
      return false;
    }
    KillGang(leader_, &killed_);
    int status = 0;
    ::waitpid(leader_, &status, 0);
    status_ = status;
    swept_since_ = now;
    if (exit_fd_ >= 0) ::close(std::exchange(exit_fd_, -1));
  }
  // Orphans become the agent's children (it is a subreaper), or init's.
  ReapGang(leader_, killed_);
  if (!KillGang(leader_, &killed_)) {
    ReapGang(leader_, killed_);
    gone_ = true;
  } else if (swept_since_ != Instant{} && now - swept_since_ > kSweepPatience) {
    std::cerr << "lemo-worker: a process of group " << leader_ << " does not end when killed\n";
    gone_ = true;
  }
  return gone_;
}

void EndLeftover(pid_t leader, uint64_t start_ticks, BootClock::duration patience) {
  const std::optional<uint64_t> found = StartTicks(leader);
  // Another process has the number now; a group of that number cannot be the old one then, since
  // the kernel gives no process the number of a living group.
  if (found && *found != start_ticks) return;
  if (found) WaitFor(leader, patience);
  const Instant deadline = BootClock::now() + kSweepPatience;
  while (KillGang(leader) && BootClock::now() < deadline) ::poll(nullptr, 0, 10);
}

}  // namespace lemo::agent
