// One upload into a local directory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "coordinator/artifacts/artifacts.h"

namespace lemo::coordinator {

struct UploadTarget {
  // What was received, and beside it, with `.upload`, what was announced. The writer holds a lock
  // on it: the kernel takes that back with the process.
  std::filesystem::path part;
  std::filesystem::path content;  // where it is published
  int64_t bytes = 0;
  std::string sha256;  // lower case
};

// As ArtifactStore::BeginUpload.
absl::StatusOr<std::unique_ptr<Upload>> OpenLocalUpload(const UploadTarget& target);

// Removes the part and its announcement, unless the part has a writer. Whether it did.
bool RemoveUpload(const std::filesystem::path& part);

// The file that goes with a part.
std::filesystem::path AnnouncementOf(const std::filesystem::path& part);

// As ErrnoStatus, but a full disk is RESOURCE_EXHAUSTED.
absl::Status DiskStatus(int error, const std::string& action, const std::filesystem::path& path);

}  // namespace lemo::coordinator
