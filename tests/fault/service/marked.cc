#include "tests/fault/service/marked.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/e2e/train/workspace.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;

constexpr const char* kMark = "LEMO_FAULT_MARK";

std::vector<std::string> Words(const std::string& text) {
  std::vector<std::string> words;
  std::istringstream in(text);
  for (std::string word; std::getline(in, word, '\0');) words.push_back(word);
  return words;
}

}  // namespace

bool MarkedProcess::Has(const std::string& word) const {
  return std::find(words.begin(), words.end(), word) != words.end();
}

bool MarkedProcess::WorksIn(const std::string& directory) const {
  return words.size() > 1 && words[1].rfind(directory + "/", 0) == 0;
}

void MarkedProcess::Signal(int signal) const {
  ::syscall(SYS_pidfd_send_signal, *fd, signal, nullptr, 0);
}

void MarkThisProcess() {
  const auto now = std::chrono::system_clock::now().time_since_epoch().count();
  ::setenv(kMark, (std::to_string(::getpid()) + "-" + std::to_string(now)).c_str(), 1);
}

std::vector<MarkedProcess> MarkedProcesses() {
  const std::string mark = std::string(kMark) + "=" + ::getenv(kMark);
  std::vector<MarkedProcess> found;
  for (const fs::directory_entry& entry : fs::directory_iterator("/proc")) {
    const pid_t pid = std::atoi(entry.path().filename().c_str());
    if (pid <= 0 || pid == ::getpid()) continue;
    const int fd = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
    if (fd < 0) continue;
    MarkedProcess process;
    process.fd = {new int(fd), [](const int* owned) {
                    ::close(*owned);
                    delete owned;
                  }};
    const std::vector<std::string> environment = Words(train::ReadAll(entry.path() / "environ"));
    if (std::find(environment.begin(), environment.end(), mark) == environment.end()) continue;
    process.pid = pid;
    process.words = Words(train::ReadAll(entry.path() / "cmdline"));
    std::getline(std::ifstream(entry.path() / "comm"), process.name);
    found.push_back(std::move(process));
  }
  return found;
}

void LimitFiles(pid_t pid, int64_t bytes) {
  rlimit limit = {};
  if (::prlimit(pid, RLIMIT_FSIZE, nullptr, &limit) != 0) return;
  limit.rlim_cur = bytes < 0 ? limit.rlim_max : static_cast<rlim_t>(bytes);
  ::prlimit(pid, RLIMIT_FSIZE, &limit, nullptr);
}

}  // namespace lemo::coordinator
