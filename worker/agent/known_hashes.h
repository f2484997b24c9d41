// Checksums of files that were read once and have not changed since.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <mutex>
#include <string>

#include "absl/status/statusor.h"
#include "worker/agent/uplink.h"

namespace lemo::agent {

// A file is taken for unchanged while its size, its time of writing and its inode are the same.
// Kept in a JSON file, so that a large model is read once and not once for each agent's life.
// Thread-safe.
class KnownHashes {
 public:
  // What `store` holds, less what has changed; nothing when it cannot be read.
  explicit KnownHashes(std::filesystem::path store);

  // SHA-256 of the file, read only when it is not known. Cancelled when `canceller` says so while
  // it is read.
  absl::StatusOr<std::string> Sha256(const std::filesystem::path& path, Canceller* canceller);
  // Of a file that was checked by who calls.
  void Remember(const std::filesystem::path& path, const std::string& sha256);

 private:
  struct Entry {
    int64_t bytes = 0;
    int64_t written_ns = 0;  // since 1970
    uint64_t inode = 0;
    std::string sha256;
  };

  // All but the checksum; bytes -1 when there is no such file.
  static Entry Look(const std::filesystem::path& path);
  static bool Same(const Entry& a, const Entry& b);
  void Keep(const std::filesystem::path& path, Entry entry);

  const std::filesystem::path store_;
  std::mutex mutex_;
  std::map<std::string, Entry> entries_;  // by path
};

}  // namespace lemo::agent
