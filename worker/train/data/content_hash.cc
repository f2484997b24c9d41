#include "worker/train/data/content_hash.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"

namespace lemo::train {
namespace {

constexpr size_t kBlockBytes = size_t{1} << 22;

}  // namespace

void BlockHasher::Add(std::string_view bytes) {
  while (!bytes.empty()) {
    const size_t take = std::min(bytes.size(), kBlockBytes - block_.size());
    block_.append(bytes.substr(0, take));
    bytes.remove_prefix(take);
    if (block_.size() == kBlockBytes) FinishBlock();
  }
}

void BlockHasher::FinishBlock() {
  digests_ += Sha256Hex(block_);
  block_.clear();
}

std::string BlockHasher::Finish() {
  if (!block_.empty()) FinishBlock();
  return Sha256Hex(digests_);
}

absl::StatusOr<std::string> HashFile(const std::filesystem::path& path, int64_t offset) {
  // Without O_NONBLOCK, opening a pipe that nobody writes to would hang.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return ErrnoStatus(errno, "open", path);
  absl::Cleanup close = [fd] { ::close(fd); };
  struct stat info;
  if (::fstat(fd, &info) != 0) return ErrnoStatus(errno, "stat", path);
  if (S_ISDIR(info.st_mode)) return ErrnoStatus(EISDIR, "read", path);
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path.string(), " is not a regular file"));
  }
  if (::lseek(fd, offset, SEEK_SET) < 0) return ErrnoStatus(errno, "seek in", path);
  BlockHasher hasher;
  std::string buffer(size_t{1} << 18, '\0');
  for (;;) {
    const ssize_t got = ::read(fd, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, "read", path);
    if (got == 0) return hasher.Finish();
    hasher.Add(std::string_view(buffer).substr(0, static_cast<size_t>(got)));
  }
}

}  // namespace lemo::train
