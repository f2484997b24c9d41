#include "tests/integration/gang_nodes/processes.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

namespace lemo::agent {
namespace {

namespace fs = std::filesystem;

constexpr char kMark[] = "LEMO_GANG_NODES_TEST";

std::vector<std::string> ReadWords(const fs::path& path) {
  std::vector<std::string> words;
  std::ifstream file(path, std::ios::binary);
  for (std::string word; std::getline(file, word, '\0');) words.push_back(word);
  return words;
}

bool Lives(const fs::path& process) {
  std::ifstream file(process / "stat");
  std::string stat;
  if (!std::getline(file, stat)) return false;
  const size_t state = stat.rfind(')') + 2;
  return state < stat.size() && stat[state] != 'Z' && stat[state] != 'X';
}

}  // namespace

void MarkProcesses(const std::string& value) { ::setenv(kMark, value.c_str(), 1); }

std::vector<Found> GangProcesses() {
  std::vector<Found> all;
  const std::string mark = std::string(kMark) + "=" + ::getenv(kMark);
  std::error_code error;
  for (fs::directory_iterator entry("/proc", error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    Found found;
    found.pid = std::stoi(name);
    bool ours = false;
    for (const std::string& word : ReadWords(entry->path() / "environ")) {
      ours |= word == mark;
      if (word.starts_with("OMPI_COMM_WORLD_RANK=")) found.rank = std::stoi(word.substr(21));
    }
    const std::vector<std::string> command = ReadWords(entry->path() / "cmdline");
    if (!ours || found.pid == ::getpid() || command.empty() || !Lives(entry->path())) continue;
    std::error_code ignored;
    found.program = fs::read_symlink(entry->path() / "exe", ignored).filename().string();
    found.network = fs::read_symlink(entry->path() / "ns" / "net", ignored).string();
    for (const std::string& word : command)
      found.command += (found.command.empty() ? "" : " ") + word;
    const bool agent = found.program == "lemo-worker" &&
                       (command.size() < 2 || (command[1] != "exec" && command[1] != "rank"));
    const bool holder = found.program == fs::read_symlink("/proc/self/exe", ignored).filename();
    if (agent || holder || found.program == "lemo-coordinator") continue;
    all.push_back(std::move(found));
  }
  return all;
}

std::vector<Listener> PortsListenedOn(const std::vector<Found>& processes) {
  std::vector<Listener> listeners;
  for (const Found& process : processes) {
    const fs::path proc = fs::path("/proc") / std::to_string(process.pid);
    std::set<std::string> sockets;
    std::error_code error;
    for (fs::directory_iterator fd(proc / "fd", error), end; !error && fd != end;
         fd.increment(error)) {
      std::error_code ignored;
      const std::string target = fs::read_symlink(fd->path(), ignored).string();
      if (target.starts_with("socket:[")) sockets.insert(target.substr(8, target.size() - 9));
    }
    for (const char* table : {"tcp", "tcp6"}) {
      std::ifstream file(proc / "net" / table);
      std::string line;
      std::getline(file, line);
      while (std::getline(file, line)) {
        std::istringstream fields(line);
        std::string field, local, state, inode;
        for (int i = 0; fields >> field && i <= 9; ++i) {
          if (i == 1) local = field;
          if (i == 3) state = field;
          if (i == 9) inode = field;
        }
        if (state != "0A" || sockets.count(inode) == 0) continue;  // 0A: LISTEN
        // Of loopback alone are those that nobody else reaches.
        if (local.starts_with("0100007F:")) continue;
        listeners.push_back({process.command, local.substr(0, local.find(':')),
                             std::stoi(local.substr(local.find(':') + 1), nullptr, 16)});
      }
    }
  }
  return listeners;
}

std::string Names(const std::vector<Found>& processes) {
  std::string text;
  for (const Found& process : processes) {
    text += std::to_string(process.pid) + " in " + process.network + ": " + process.command + "\n";
  }
  return text;
}

}  // namespace lemo::agent
