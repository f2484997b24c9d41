// SHA-256 over files of any size in flat memory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace lemo::train {

// Hashes bytes as they come: the SHA-256 of the hex SHA-256 of every 4 MiB block. Not thread-safe.
class BlockHasher {
 public:
  void Add(std::string_view bytes);
  // 64 hex digits. Call once.
  std::string Finish();

 private:
  void FinishBlock();

  std::string block_;
  std::string digests_;
};

// BlockHasher's answer for a file's bytes from `offset` on. Reads, does not map: a map would count
// as resident memory.
absl::StatusOr<std::string> HashFile(const std::filesystem::path& path, int64_t offset = 0);

}  // namespace lemo::train
