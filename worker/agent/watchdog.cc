#include "worker/agent/watchdog.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <new>

#include "common/files.h"
#include "worker/agent/process_info.h"

namespace lemo::agent {

struct Watchdog::Board {
  struct Slot {
    std::atomic<pid_t> group{0};
    std::atomic<int64_t> patience{0};  // ticks of BootClock
  };
  std::atomic<int64_t> deadline{kNever.time_since_epoch().count()};
  std::array<Slot, 256> slots;
};

namespace {

constexpr auto kPause = std::chrono::milliseconds(250);
constexpr auto kOrphanPause = std::chrono::milliseconds(50);

// Kills the group, unless its leader is to be spared and lives. Whether anything of it is left.
template <typename Slot>
bool End(Slot& slot, bool spare_leader) {
  pid_t group = slot.group;
  if (group == 0) return false;
  if (spare_leader && Lives(group)) return true;
  if (KillGang(group)) return true;
  // Cleared, so that a later group of the same number is left alone; unless the agent, if there is
  // one, has put another group there.
  slot.group.compare_exchange_strong(group, 0);
  return false;
}

// `lifeline` becomes readable when the agent has died.
template <typename Board>
[[noreturn]] void Serve(Board* board, int lifeline) {
  bool orphaned = false;
  Instant orphaned_since{};
  for (;;) {
    const Instant now = BootClock::now();
    const Instant deadline{BootClock::duration(board->deadline)};
    const bool ending = now >= deadline || orphaned;
    bool any = false;
    for (auto& slot : board->slots) {
      if (!ending) break;
      const BootClock::duration patience(slot.patience);
      any |= End(slot, /*spare_leader=*/now < deadline && now - orphaned_since <= patience);
    }
    if (orphaned && !any) ::_exit(0);
    const auto pause = ending ? kOrphanPause : kPause;
    pollfd poll{.fd = orphaned ? -1 : lifeline, .events = POLLIN};
    if (::poll(&poll, 1, static_cast<int>(pause.count())) > 0) {
      orphaned = true;
      orphaned_since = BootClock::now();
    }
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Watchdog>> Watchdog::Start() {
  void* memory =
      ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  int ends[2];
  if (memory == MAP_FAILED || ::pipe2(ends, O_CLOEXEC) != 0) {
    return ErrnoStatus(errno, "prepare", "the watchdog");
  }
  Board* board = new (memory) Board;
  const pid_t pid = ::fork();
  if (pid < 0) return ErrnoStatus(errno, "fork", "the watchdog");
  if (pid == 0) {
    ::close(ends[1]);
    // Out of reach of Ctrl-C, which a terminal sends to the agent's whole group.
    ::setpgid(0, 0);
    for (int signal : {SIGTERM, SIGINT, SIGHUP}) ::signal(signal, SIG_IGN);
    ::prctl(PR_SET_NAME, "lemo-watchdog");
    // Who waits for the end of the agent's output must not wait for this process.
    const int null = ::open("/dev/null", O_RDWR);
    for (int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::dup2(null, fd);
    Serve(board, ends[0]);
  }
  ::close(ends[0]);
  return std::unique_ptr<Watchdog>(new Watchdog(board, pid, ends[1]));
}

Watchdog::~Watchdog() {
  ::close(lifeline_);
  while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
  ::munmap(board_, sizeof(Board));
}

void Watchdog::SetDeadline(Instant deadline) {
  board_->deadline = deadline.time_since_epoch().count();
}

Instant Watchdog::Deadline() const { return Instant(BootClock::duration(board_->deadline)); }

absl::Status Watchdog::Watch(pid_t group, BootClock::duration patience) {
  for (auto& slot : board_->slots) {
    // Only the agent fills slots, so one that is free stays so until the second line.
    if (slot.group != 0) continue;
    slot.patience = patience.count();
    slot.group = group;
    return absl::OkStatus();
  }
  return absl::ResourceExhaustedError("the watchdog watches 256 gangs already");
}

void Watchdog::Unwatch(pid_t group) {
  for (auto& slot : board_->slots) {
    pid_t expected = group;
    if (slot.group.compare_exchange_strong(expected, 0)) return;
  }
}

}  // namespace lemo::agent
