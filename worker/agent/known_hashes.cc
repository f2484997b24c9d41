#include "worker/agent/known_hashes.h"

#include <sys/stat.h>

#include <chrono>
#include <iostream>
#include <utility>

#include "common/files.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"

namespace lemo::agent {
namespace {

namespace fs = std::filesystem;

// A file that was written so shortly ago can change without its time of writing showing it: that
// has the grain of the file system's clock.
constexpr int64_t kSettledNs = 2'000'000'000;

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace

KnownHashes::KnownHashes(fs::path store) : store_(std::move(store)) {
  const absl::StatusOr<std::string> text = ReadFile(store_, int64_t{64} << 20);
  if (!text.ok()) return;
  const nlohmann::json json = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  try {
    for (const nlohmann::json& file : json) {
      Entry entry{file.at("bytes"), file.at("written_ns"), file.at("inode"), file.at("sha256")};
      const std::string path = file.at("path");
      if (Same(Look(path), entry)) entries_[path] = std::move(entry);
    }
  } catch (const nlohmann::json::exception&) {
    // What is not understood is read anew.
  }
}

KnownHashes::Entry KnownHashes::Look(const fs::path& path) {
  struct stat info;
  if (::stat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) return {.bytes = -1};
  return {.bytes = info.st_size,
          .written_ns = int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec,
          .inode = info.st_ino};
}

bool KnownHashes::Same(const Entry& a, const Entry& b) {
  return a.bytes >= 0 && a.bytes == b.bytes && a.written_ns == b.written_ns && a.inode == b.inode;
}

absl::StatusOr<std::string> KnownHashes::Sha256(const fs::path& path, Canceller* canceller) {
  Entry entry = Look(path);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = entries_.find(path.string());
    if (found != entries_.end() && Same(entry, found->second)) return found->second.sha256;
  }
  const int64_t begun_ns = NowNs();
  LEMO_ASSIGN_OR_RETURN(entry.sha256,
                        Sha256HexOfFile(path, [canceller] { return !canceller->cancelled(); }));
  if (entry.written_ns < begun_ns - kSettledNs && Same(Look(path), entry)) Keep(path, entry);
  return entry.sha256;
}

void KnownHashes::Remember(const fs::path& path, const std::string& sha256) {
  Entry entry = Look(path);
  entry.sha256 = sha256;
  Keep(path, std::move(entry));
}

void KnownHashes::Keep(const fs::path& path, Entry entry) {
  std::lock_guard<std::mutex> lock(mutex_);
  entries_[path.string()] = std::move(entry);
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const auto& [name, one] : entries_) {
    json.push_back({{"path", name},
                    {"bytes", one.bytes},
                    {"written_ns", one.written_ns},
                    {"inode", one.inode},
                    {"sha256", one.sha256}});
  }
  const std::string text =
      json.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  // Without it the file is read once more after a restart.
  if (absl::Status status = WriteFileAtomic(store_, text + "\n"); !status.ok()) {
    std::cerr << "lemo-worker: " << status.message() << "\n";
  }
}

}  // namespace lemo::agent
