// Content that processes of one machine have once between them: a file that each of them maps, made
// by whoever needs it first.
//
//   DIR/{name}.shared   whole, and never changed; whoever maps it holds a shared lock on it
//   DIR/{name}.new      being made
//   DIR/{name}.lock     held by who makes it
//
// Locks are the kernel's (flock), so that one who dies holds none: no count of users can be wrong,
// and what a maker left behind is made anew. The same name must always mean the same content.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lemo {

// Read-only memory. While the object lives, the file is not removed by RemoveUnusedSharedFiles.
class SharedFile {
 public:
  SharedFile(void* data, int64_t bytes, int fd) : data_(data), bytes_(bytes), fd_(fd) {}
  ~SharedFile();
  SharedFile(const SharedFile&) = delete;
  SharedFile& operator=(const SharedFile&) = delete;

  const char* data() const { return static_cast<const char*>(data_); }  // begins a page
  int64_t bytes() const { return bytes_; }

 private:
  void* data_;
  int64_t bytes_;
  int fd_;  // holds the lock
};

// The content `name` of `bytes` bytes (above 0) in `directory`, which is made if need be. Where it
// is not there `fill` writes all of it, into memory that begins as zeros: straight into the file,
// so that it is nowhere twice. Whoever comes meanwhile waits, `patience` at most (DeadlineExceeded;
// of two that come at once one fills). A full disk is FailedPrecondition before anything is filled;
// what `fill` answers or throws is passed on, and leaves no file.
//
// Nothing is synced to a disk, and what another boot of the machine left is never taken.
absl::StatusOr<std::shared_ptr<const SharedFile>> MapSharedFile(
    const std::filesystem::path& directory, const std::string& name, int64_t bytes,
    const std::function<absl::Status(char* data)>& fill, std::chrono::milliseconds patience);

// Removes files that nobody maps, those first that were not taken for longest, until no more than
// `keep_bytes` of them are left; and what makers or other boots have left behind. Files that are
// being made or mapped stay, and so does everything in the directory that is not of the names
// above. Answers the bytes of all that is left. Blocks for nobody.
int64_t RemoveUnusedSharedFiles(const std::filesystem::path& directory, int64_t keep_bytes);

}  // namespace lemo
