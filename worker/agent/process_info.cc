#include "worker/agent/process_info.h"

#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"

namespace lemo::agent {
namespace {

// Fields of /proc/PID/stat that are asked for, by their numbers in proc(5).
struct Stat {
  char state = 0;              // 3
  pid_t parent = 0;            // 4
  pid_t group = 0;             // 5
  pid_t session = 0;           // 6
  int64_t cpu_ticks = 0;       // 14 and 15
  uint64_t start_ticks = 0;    // 22
  int64_t resident_pages = 0;  // 24
};

std::optional<Stat> ReadStat(const std::string& pid) {
  std::ifstream file("/proc/" + pid + "/stat");
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  // The second field is the program's name in brackets and may hold anything.
  const size_t close = line.rfind(')');
  if (close == std::string::npos) return std::nullopt;
  std::istringstream fields(line.substr(close + 1));
  Stat stat;
  std::string word;
  for (int field = 3; fields >> word; ++field) {
    if (field == 3) stat.state = word[0];
    if (field == 4) stat.parent = static_cast<pid_t>(std::stol(word));
    if (field == 5) stat.group = static_cast<pid_t>(std::stol(word));
    if (field == 6) stat.session = static_cast<pid_t>(std::stol(word));
    if (field == 14 || field == 15) stat.cpu_ticks += std::stoll(word);
    if (field == 22) stat.start_ticks = std::stoull(word);
    if (field == 24) {
      stat.resident_pages = std::stoll(word);
      return stat;
    }
  }
  return std::nullopt;
}

}  // namespace

std::optional<uint64_t> StartTicks(pid_t pid) {
  const std::optional<Stat> stat = ReadStat(std::to_string(pid));
  if (!stat) return std::nullopt;
  return stat->start_ticks;
}

std::string GangMark(pid_t leader) { return absl::StrFormat("LEMO_GANG=%010d", leader); }

std::string BootId() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  return id;
}

namespace {

bool Computes(const Stat& stat) { return stat.state != 'Z' && stat.state != 'X'; }

// What the process was started with; empty for one that has ended, or is another user's.
bool HasMark(const std::string& pid, const std::string& mark) {
  std::ifstream file("/proc/" + pid + "/environ", std::ios::binary);
  for (std::string entry; std::getline(file, entry, '\0');) {
    if (entry == mark) return true;
  }
  return false;
}

// Calls `visit` with the number and the state of every process of the gang.
template <typename Visit>
void ForGang(pid_t leader, const Visit& visit) {
  const std::string mark = GangMark(leader);
  std::error_code error;
  for (std::filesystem::directory_iterator entry("/proc", error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    int pid = 0;
    if (!absl::SimpleAtoi(name, &pid)) continue;
    const std::optional<Stat> stat = ReadStat(name);
    if (!stat) continue;
    if (stat->group == leader || stat->session == leader || HasMark(name, mark)) visit(pid, *stat);
  }
}

}  // namespace

std::optional<GroupUsage> UsageOfGroup(pid_t group) {
  std::optional<GroupUsage> usage;
  ForGang(group, [&](pid_t, const Stat& stat) {
    if (!usage) usage.emplace();
    usage->resident_bytes += stat.resident_pages * ::sysconf(_SC_PAGE_SIZE);
    usage->cpu_seconds +=
        static_cast<double>(stat.cpu_ticks) / static_cast<double>(::sysconf(_SC_CLK_TCK));
  });
  return usage;
}

int64_t GroupResidentBytes(pid_t group) {
  int64_t pages = 0;
  ForGang(group, [&](pid_t, const Stat& stat) { pages += stat.resident_pages; });
  return pages * ::sysconf(_SC_PAGE_SIZE);
}

bool Lives(pid_t pid) {
  const std::optional<Stat> stat = ReadStat(std::to_string(pid));
  return stat && Computes(*stat);
}

bool GroupLives(pid_t group) {
  bool lives = false;
  ForGang(group, [&](pid_t, const Stat& stat) { lives |= Computes(stat); });
  return lives;
}

bool KillGang(pid_t leader, std::set<pid_t>* killed) {
  // At once for those of the group; the others are looked for.
  ::kill(-leader, SIGKILL);
  bool any = false;
  ForGang(leader, [&](pid_t pid, const Stat& stat) {
    if (!Computes(stat)) return;
    any = true;
    ::kill(pid, SIGKILL);
    if (killed != nullptr) killed->insert(pid);
  });
  return any;
}

void ReapGang(pid_t leader, const std::set<pid_t>& killed) {
  for (const pid_t pid : killed) {
    if (pid != leader) ::waitpid(pid, nullptr, WNOHANG);
  }
  const pid_t self = ::getpid();
  ForGang(leader, [&](pid_t pid, const Stat& stat) {
    if (pid != leader && stat.parent == self && !Computes(stat)) ::waitpid(pid, nullptr, WNOHANG);
  });
}

int OpenPidfd(pid_t pid) {
  return static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));  // closed on exec by itself
}

}  // namespace lemo::agent
