// A directory that is whole or absent, whenever the process is killed.
//
// Files beside the target `a/name` while one is made: `a/.name.tmp` (being written, or being
// deleted) and, only on file systems that cannot exchange two names in one step, `a/.name.old` (the
// former directory between two renames). Neither counts as the target.
#pragma once

#include <filesystem>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lemo::train {

// The caller's duties:
//   1. Begin(target).
//   2. Write files below path(), each synced by its writer (WriteFileAtomic and WriteSafetensors
//   are).
//   3. Commit(). Without it the destructor removes what was written and the former target stays.
// One process at a time makes one target. Not thread-safe.
class AtomicDirectory {
 public:
  // How Commit replaces a target that exists.
  enum class Replace {
    kExchange,   // in one step; falls back to kMoveAside where the file system has no such step
    kMoveAside,  // two renames: for an instant there is only `.name.old`, which Recover puts back
  };

  // Makes parents and an empty temporary directory; removes leftovers of a killed process, or puts
  // the former target back if it died between two renames. FailedPrecondition when `target` is a
  // file.
  static absl::StatusOr<AtomicDirectory> Begin(const std::filesystem::path& target);

  // Puts `.name.old` back where `target` is missing, removes it where it is not.
  static absl::Status Recover(const std::filesystem::path& target);

  // Deletes `target` so that a kill halfway leaves no half directory of that name. OK if there is
  // none.
  static absl::Status Remove(const std::filesystem::path& target);

  static std::filesystem::path TemporaryPath(const std::filesystem::path& target);
  static std::filesystem::path FormerPath(const std::filesystem::path& target);

  AtomicDirectory(AtomicDirectory&& other) noexcept;
  AtomicDirectory& operator=(AtomicDirectory&&) = delete;
  ~AtomicDirectory();

  // Where to write.
  const std::filesystem::path& path() const { return temporary_; }

  // On success the target is what was written, durably. On failure the former target is in place.
  // Call at most once.
  absl::Status Commit(Replace replace = Replace::kExchange);

 private:
  explicit AtomicDirectory(std::filesystem::path target);

  std::filesystem::path target_;
  std::filesystem::path temporary_;  // empty once committed or moved from
};

}  // namespace lemo::train
