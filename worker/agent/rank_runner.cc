#include "worker/agent/rank_runner.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/files.h"
#include "nlohmann/json.hpp"
#include "worker/agent/attempt_journal.h"
#include "worker/agent/gang_command.h"
#include "worker/agent/process_info.h"

namespace lemo::agent {
namespace {

constexpr int kEventsFd = 3;
constexpr int kFault = 4;

int Fail(const std::string& message) {
  std::cerr << "lemo-worker rank: " << message << std::endl;
  return kFault;
}

// mpirun has the event pipe as its descriptor 3, from Gang::Start, and closes it in its children.
int OpenEvents(int rank, pid_t mpirun) {
  const std::string path =
      rank == 0 ? absl::StrCat("/proc/", mpirun, "/fd/", kEventsFd) : "/dev/null";
  return ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
}

// In the arguments of a gang over several nodes: what this node has in place of them.
std::vector<std::pair<std::string, std::string>> Places(const char* number) {
  const auto value = [](const char* name) {
    const char* text = ::getenv(name);
    return std::string(text == nullptr ? "" : text);
  };
  return {{kRankPlace, number},
          {kDirectoryPlace, value(kNodeDirectory)},
          {kTrainPlace, value(kNodeTrain)}};
}

[[noreturn]] void BecomeRank(const std::vector<std::string>& words, int events, pid_t parent) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(kFault);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  const int null = ::open("/dev/null", O_RDONLY);
  ::dup2(null, STDIN_FILENO);
  // Not already there: that would leave it to be closed on exec.
  if (events == kEventsFd) {
    ::fcntl(events, F_SETFD, 0);
  } else {
    ::dup2(events, kEventsFd);
  }
  ::syscall(SYS_close_range, kEventsFd + 1, ~0U, 0);
  std::vector<char*> argv;
  for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  ::execv(argv[0], argv.data());
  std::cerr << "cannot start " << words[0] << ": " << std::strerror(errno) << std::endl;
  ::_exit(kFault);
}

int64_t BootNanoseconds() {
  timespec time;
  ::clock_gettime(CLOCK_BOOTTIME, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

// Serves until the rank has ended. `*asked`: to stop.
RankEnd Watch(pid_t rank, int signals, int mpirun_fd, bool* asked) {
  RankEnd end;
  const int rank_fd = OpenPidfd(rank);
  pollfd fds[] = {{rank_fd, POLLIN, 0}, {signals, POLLIN, 0}, {mpirun_fd, POLLIN, 0}};
  const auto kill_rank = [&] {
    end.for_others = true;
    ::kill(-rank, SIGKILL);
  };
  for (;;) {
    if (::poll(fds, 3, -1) < 0) continue;
    if (fds[0].revents != 0) break;
    signalfd_siginfo info;
    if (fds[1].revents != 0 && ::read(signals, &info, sizeof(info)) == sizeof(info)) {
      if (info.ssi_signo != SIGUSR1) {
        kill_rank();
      } else if (!std::exchange(*asked, true)) {
        ::kill(-rank, SIGTERM);
      }
    }
    if (fds[2].revents != 0) {
      kill_rank();
      fds[2].fd = -1;
    }
  }
  end.boot_ns = BootNanoseconds();
  // What the rank has started goes before it is reaped, while its number is its own.
  ::kill(-rank, SIGKILL);
  ::waitpid(rank, &end.status, 0);
  return end;
}

}  // namespace

std::optional<RankEnd> ReadRankEnd(const std::filesystem::path& path) {
  const absl::StatusOr<std::string> text = ReadFile(path, 4096);
  if (!text.ok()) return std::nullopt;
  const nlohmann::json json = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  try {
    return RankEnd{json.at("status"), json.at("boot_ns"), json.at("for_others")};
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  }
}

std::optional<int> FirstToFail(const std::vector<std::optional<RankEnd>>& ends) {
  std::optional<int> first;
  for (int rank = 0; rank < static_cast<int>(ends.size()); ++rank) {
    const std::optional<RankEnd>& end = ends[static_cast<size_t>(rank)];
    if (!end || end->status == 0 || end->for_others) continue;
    if (!first || end->boot_ns < ends[static_cast<size_t>(*first)]->boot_ns) first = rank;
  }
  return first;
}

int RunRank(const std::vector<std::string>& given) {
  // From the start, so that none is lost or ends this process.
  sigset_t set;
  ::sigemptyset(&set);
  for (int signal : {SIGUSR1, SIGTERM, SIGINT, SIGHUP}) ::sigaddset(&set, signal);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  int attempt = 0, rank = -1;
  const char* number = ::getenv("OMPI_COMM_WORLD_RANK");
  std::vector<std::string> args = given;
  if (number != nullptr) {
    for (std::string& word : args) absl::StrReplaceAll(Places(number), &word);
  }
  if (args.size() < 4 || !absl::SimpleAtoi(args[1], &attempt) || args[2] != "--") {
    return Fail("expected DIRECTORY ATTEMPT -- PROGRAM ARGUMENT...");
  }
  if (number == nullptr || !absl::SimpleAtoi(number, &rank) || rank < 0) {
    return Fail("OMPI_COMM_WORLD_RANK is no rank's number; this is started by mpirun");
  }
  const AttemptJournal journal(args[0], attempt);
  const pid_t mpirun = ::getppid();
  const int mpirun_fd = OpenPidfd(mpirun);
  const int signals = ::signalfd(-1, &set, SFD_CLOEXEC);
  const int log =
      ::open(journal.log(rank).c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (mpirun_fd < 0 || signals < 0 || log < 0) {
    return Fail(absl::StrCat("cannot watch mpirun or open a log: ", std::strerror(errno)));
  }
  ::dup2(log, STDOUT_FILENO);
  ::dup2(log, STDERR_FILENO);
  const int events = OpenEvents(rank, mpirun);
  if (events < 0) return Fail(absl::StrCat("cannot open the events: ", std::strerror(errno)));
  const std::vector<std::string> words(args.begin() + 3, args.end());
  for (std::string& setting : RankEnvironment()) {
    const size_t equals = setting.find('=');
    ::setenv(setting.substr(0, equals).c_str(), setting.substr(equals + 1).c_str(), 1);
  }
  const pid_t self = ::getpid();
  const pid_t child = ::fork();
  if (child < 0) return Fail(absl::StrCat("cannot fork: ", std::strerror(errno)));
  if (child == 0) BecomeRank(words, events, self);
  ::setpgid(child, child);
  ::close(events);  // the agent waits for its end
  bool asked = false;
  const RankEnd end = Watch(child, signals, mpirun_fd, &asked);
  const nlohmann::json json = {
      {"status", end.status}, {"boot_ns", end.boot_ns}, {"for_others", end.for_others}};
  const absl::Status written = WriteFileAtomic(journal.rank_end(rank), json.dump());
  if (!written.ok()) return Fail(std::string(written.message()));
  if (asked) return 0;
  return WIFEXITED(end.status) ? WEXITSTATUS(end.status) : 128 + WTERMSIG(end.status);
}

}  // namespace lemo::agent
