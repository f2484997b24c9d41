#include "common/process_metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>

namespace lemo::metrics {
namespace {

const Family kBuild = {
    Type::kGauge, "lemo_build_info", "1; the label tells the program's version.", {"version"}};
const Family kCpu = {Type::kCounter, "process_cpu_seconds_total",
                     "CPU time that the process has taken, user and system."};
const Family kStart = {Type::kGauge, "process_start_time_seconds",
                       "When the process was started, in seconds since 1970."};
const Family kResident = {Type::kGauge, "process_resident_memory_bytes",
                          "Resident memory of the process."};
const Family kVirtual = {Type::kGauge, "process_virtual_memory_bytes",
                         "Virtual memory of the process."};
const Family kOpenFds = {Type::kGauge, "process_open_fds", "Open file descriptors."};
const Family kMaxFds = {Type::kGauge, "process_max_fds",
                        "File descriptors that the process may have open."};

// Seconds since 1970 when the machine was booted.
double BootTime() {
  std::ifstream file("/proc/stat");
  for (std::string word; file >> word;) {
    double seconds = 0;
    if (word == "btime" && file >> seconds) return seconds;
  }
  return 0;
}

void AddStat(Samples* samples) {
  std::ifstream file("/proc/self/stat");
  std::string line;
  std::getline(file, line);
  // The second field is the program's name in brackets and may hold anything.
  const size_t close = line.rfind(')');
  if (close == std::string::npos) return;
  std::istringstream fields(line.substr(close + 1));
  const double ticks = static_cast<double>(::sysconf(_SC_CLK_TCK));
  const double page = static_cast<double>(::sysconf(_SC_PAGE_SIZE));
  double cpu_ticks = 0;
  std::string word;
  // Numbers as in proc(5).
  for (int field = 3; field <= 24 && fields >> word; ++field) {
    const double value = field == 3 ? 0 : std::stod(word);
    if (field == 14 || field == 15) cpu_ticks += value;
    if (field == 22) samples->Set(kStart, BootTime() + value / ticks);
    if (field == 23) samples->Set(kVirtual, value);
    if (field == 24) samples->Set(kResident, value * page);
  }
  samples->Set(kCpu, cpu_ticks / ticks);
}

}  // namespace

Families ProcessFamilies() {
  return {&kBuild, &kCpu, &kStart, &kResident, &kVirtual, &kOpenFds, &kMaxFds};
}

void AddProcessSamples(const std::string& version, Samples* samples) {
  samples->Set(kBuild, 1, {version});
  AddStat(samples);
  std::error_code error;
  const std::filesystem::directory_iterator fds("/proc/self/fd", error);
  if (!error) {
    // Without the one that lists them.
    const auto count = std::distance(begin(fds), std::filesystem::directory_iterator());
    samples->Set(kOpenFds, static_cast<double>(count - 1));
  }
  rlimit limit;
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    samples->Set(kMaxFds, static_cast<double>(limit.rlim_cur));
  }
}

}  // namespace lemo::metrics
