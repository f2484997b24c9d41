// Files that are either whole or absent.
//
// Errors: NotFound (no such file), PermissionDenied, ResourceExhausted never (that is memory);
// a full disk is FailedPrecondition with the path and the bytes wanted; the rest is Internal.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lemo {

// A status for the value of errno after `action` on `path` failed.
absl::Status ErrnoStatus(int error, std::string_view action, const std::filesystem::path& path);
// Whether such a status says that the disk is full (or a quota used up, or a file too large), by
// its message, which may have come from another process and be within a longer one.
bool SaysDiskIsFull(std::string_view message);

// The whole file. `max_bytes` bounds what is read: larger files are InvalidArgument.
absl::StatusOr<std::string> ReadFile(const std::filesystem::path& path,
                                     int64_t max_bytes = int64_t{1} << 30);

// Writes beside, syncs, renames: afterwards `path` holds either its former contents or all of
// `data`.
absl::Status WriteFileAtomic(const std::filesystem::path& path, std::string_view data);

// Flushes a file, or the entries of a directory, to the disk.
absl::Status SyncPath(const std::filesystem::path& path);

// Creates `path` and its parents.
absl::Status MakeDirectories(const std::filesystem::path& path);

// SHA-256 as 64 lower-case hex digits.
std::string Sha256Hex(std::string_view data);
absl::StatusOr<std::string> Sha256HexOfFile(const std::filesystem::path& path);
// The same for files that take long: `go_on` is asked before every mebibyte; Cancelled when it says
// no.
absl::StatusOr<std::string> Sha256HexOfFile(const std::filesystem::path& path,
                                            const std::function<bool()>& go_on);

// A read-only memory mapping. Movable; the view lives as long as the object.
class MappedFile {
 public:
  static absl::StatusOr<MappedFile> Open(const std::filesystem::path& path);
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::string_view bytes() const { return {static_cast<const char*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace lemo
