#include "coordinator/runtime/gang_secret.h"

#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace lemo::coordinator {
namespace {

constexpr size_t kBytes = 32;

// Not by WriteFileAtomic: nobody else may read it at any moment.
absl::Status Write(const std::filesystem::path& path, const std::string& secret) {
  const std::string beside = path.string() + ".tmp";
  ::unlink(beside.c_str());
  const int fd = ::open(beside.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) return ErrnoStatus(errno, "create", beside);
  const absl::Cleanup close = [fd] { ::close(fd); };
  if (::write(fd, secret.data(), secret.size()) != static_cast<ssize_t>(secret.size()) ||
      ::fsync(fd) != 0 || ::rename(beside.c_str(), path.c_str()) != 0) {
    return ErrnoStatus(errno, "write", path);
  }
  return SyncPath(path.parent_path());
}

}  // namespace

absl::StatusOr<std::string> GangSecret(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / "gang_secret";
  absl::StatusOr<std::string> kept = ReadFile(path, 4096);
  if (kept.ok()) {
    if (kept->size() != 2 * kBytes) {
      return absl::DataLossError(absl::StrCat(path.string(), ": ", kept->size(),
                                              " bytes, expected ", 2 * kBytes,
                                              "; remove it, and another is made"));
    }
    return kept;
  }
  if (!absl::IsNotFound(kept.status())) return kept.status();
  std::array<char, kBytes> random;
  if (::getrandom(random.data(), random.size(), 0) != static_cast<ssize_t>(random.size())) {
    return ErrnoStatus(errno, "draw random bytes for", path);
  }
  const std::string secret = absl::BytesToHexString({random.data(), random.size()});
  LEMO_RETURN_IF_ERROR(Write(path, secret));
  return secret;
}

}  // namespace lemo::coordinator
