#include "worker/agent/process_info.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace lemo::agent {
namespace {

// Fields of /proc/PID/stat that are asked for, by their numbers in proc(5).
struct Stat {
  char state = 0;              // 3
  pid_t group = 0;             // 5
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
    if (field == 5) stat.group = static_cast<pid_t>(std::stol(word));
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

std::string BootId() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  return id;
}

namespace {

bool Computes(const Stat& stat) { return stat.state != 'Z' && stat.state != 'X'; }

// Calls `visit` for every process of the group.
template <typename Visit>
void ForGroup(pid_t group, const Visit& visit) {
  std::error_code error;
  for (std::filesystem::directory_iterator entry("/proc", error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    int pid = 0;
    if (!absl::SimpleAtoi(name, &pid)) continue;
    const std::optional<Stat> stat = ReadStat(name);
    if (stat && stat->group == group) visit(*stat);
  }
}

}  // namespace

int64_t GroupResidentBytes(pid_t group) {
  int64_t pages = 0;
  ForGroup(group, [&](const Stat& stat) { pages += stat.resident_pages; });
  return pages * ::sysconf(_SC_PAGE_SIZE);
}

bool Lives(pid_t pid) {
  const std::optional<Stat> stat = ReadStat(std::to_string(pid));
  return stat && Computes(*stat);
}

bool GroupLives(pid_t group) {
  bool lives = false;
  ForGroup(group, [&](const Stat& stat) { lives |= Computes(stat); });
  return lives;
}

int OpenPidfd(pid_t pid) {
  return static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));  // closed on exec by itself
}

}  // namespace lemo::agent
