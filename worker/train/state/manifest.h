// manifest.json of a checkpoint: what a whole checkpoint consists of. Written last, so its presence
// says that the rest was written; its checksums say that the rest is still what was written.
//
//   {"checksum": "<SHA-256 of the compact JSON of all other members>", "created":
//   "2026-01-31T12:00:00Z",
//    "eval_loss": 2.31, "files": {"state.json": {"sha256": "...", "size": 123}},
//    "format": "lemo.checkpoint", "step": 10, "version": 1}
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lemo::train {

inline constexpr const char* kManifestName = "manifest.json";

struct Manifest {
  struct File {
    int64_t size = 0;
    std::string sha256;
  };
  int64_t step = 0;
  std::string created;                // UTC, RFC 3339
  std::optional<double> eval_loss;    // finite
  std::map<std::string, File> files;  // plain names, no directories
};

std::string ManifestToJson(const Manifest& manifest);

// InvalidArgument with `path` and the reason: not JSON, another format or version, a member missing
// or of another type, a checksum that does not match.
absl::StatusOr<Manifest> ParseManifest(std::string_view json, const std::filesystem::path& path);

// Reads `<directory>/manifest.json`. InvalidArgument as well when there is none.
absl::StatusOr<Manifest> ReadManifest(const std::filesystem::path& directory);

// Size and checksum of one file as it lies on the disk.
absl::StatusOr<Manifest::File> DescribeFile(const std::filesystem::path& path);

// That every listed file is there with its size and, with `checksums`, its content. InvalidArgument
// with the first file that is not.
enum class VerifyLevel { kSizes, kChecksums };
absl::Status VerifyFiles(const Manifest& manifest, const std::filesystem::path& directory,
                         VerifyLevel level);

}  // namespace lemo::train
