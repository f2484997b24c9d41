#include "common/files.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace lemo {

absl::Status ErrnoStatus(int error, std::string_view action, const std::filesystem::path& path) {
  const std::string message =
      absl::StrCat("cannot ", std::string(action), " ", path.string(), ": ", std::strerror(error));
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return absl::FailedPreconditionError(message);
    case EISDIR:
      return absl::InvalidArgumentError(message);
    default:
      return absl::InternalError(message);
  }
}

bool SaysDiskIsFull(std::string_view message) {
  for (const int error : {ENOSPC, EDQUOT, EFBIG}) {
    if (message.find(std::strerror(error)) != std::string_view::npos) return true;
  }
  return false;
}

absl::StatusOr<std::string> ReadFile(const std::filesystem::path& path, int64_t max_bytes) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, "open", path);
  absl::Cleanup close = [fd] { ::close(fd); };
  std::string out;
  std::vector<char> buffer(1 << 16);
  for (;;) {
    const ssize_t got = ::read(fd, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, "read", path);
    if (got == 0) return out;
    out.append(buffer.data(), static_cast<size_t>(got));
    if (static_cast<int64_t>(out.size()) > max_bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(path.string(), " is larger than the limit of ", max_bytes, " bytes"));
    }
  }
}

absl::Status SyncPath(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, "open", path);
  absl::Cleanup close = [fd] { ::close(fd); };
  if (::fsync(fd) != 0) return ErrnoStatus(errno, "sync", path);
  return absl::OkStatus();
}

absl::Status MakeDirectories(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return ErrnoStatus(error.value(), "create directory", path);
  return absl::OkStatus();
}

absl::Status WriteFileAtomic(const std::filesystem::path& path, std::string_view data) {
  const std::filesystem::path beside =
      path.parent_path() / absl::StrCat(".", path.filename().string(), ".", ::getpid(), ".tmp");
  const int fd = ::open(beside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoStatus(errno, "create", beside);
  absl::Cleanup discard = [&beside] { ::unlink(beside.c_str()); };
  {
    absl::Cleanup close = [fd] { ::close(fd); };
    while (!data.empty()) {
      const ssize_t wrote = ::write(fd, data.data(), data.size());
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote < 0) return ErrnoStatus(errno, "write", path);
      data.remove_prefix(static_cast<size_t>(wrote));
    }
    if (::fsync(fd) != 0) return ErrnoStatus(errno, "sync", path);
  }
  if (::rename(beside.c_str(), path.c_str()) != 0) return ErrnoStatus(errno, "rename to", path);
  std::move(discard).Cancel();
  return SyncPath(path.has_parent_path() ? path.parent_path() : std::filesystem::path("."));
}

namespace {

using DigestContext = std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)>;

DigestContext StartSha256() {
  DigestContext context(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
  EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr);
  return context;
}

std::string FinishHex(EVP_MD_CTX* context) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  EVP_DigestFinal_ex(context, digest, &length);
  std::string hex;
  for (unsigned int i = 0; i < length; ++i) absl::StrAppendFormat(&hex, "%02x", digest[i]);
  return hex;
}

}  // namespace

std::string Sha256Hex(std::string_view data) {
  DigestContext context = StartSha256();
  EVP_DigestUpdate(context.get(), data.data(), data.size());
  return FinishHex(context.get());
}

absl::StatusOr<std::string> Sha256HexOfFile(const std::filesystem::path& path) {
  absl::StatusOr<MappedFile> file = MappedFile::Open(path);
  if (!file.ok()) return file.status();
  return Sha256Hex(file->bytes());
}

absl::StatusOr<std::string> Sha256HexOfFile(const std::filesystem::path& path,
                                            const std::function<bool()>& go_on) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, "open", path);
  absl::Cleanup close = [fd] { ::close(fd); };
  DigestContext context = StartSha256();
  std::vector<char> buffer(1 << 20);
  for (;;) {
    if (!go_on()) return absl::CancelledError(absl::StrCat("stopped reading ", path.string()));
    const ssize_t got = ::read(fd, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, "read", path);
    if (got == 0) return FinishHex(context.get());
    EVP_DigestUpdate(context.get(), buffer.data(), static_cast<size_t>(got));
  }
}

absl::StatusOr<MappedFile> MappedFile::Open(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, "open", path);
  absl::Cleanup close = [fd] { ::close(fd); };
  struct stat info;
  if (::fstat(fd, &info) != 0) return ErrnoStatus(errno, "stat", path);
  if (S_ISDIR(info.st_mode)) return ErrnoStatus(EISDIR, "map", path);
  MappedFile file;
  file.size_ = static_cast<size_t>(info.st_size);
  if (file.size_ == 0) return file;  // mmap refuses empty ranges
  void* data = ::mmap(nullptr, file.size_, PROT_READ, MAP_PRIVATE, fd, 0);
  if (data == MAP_FAILED) return ErrnoStatus(errno, "map", path);
  file.data_ = data;
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  if (this != &other) {
    if (data_ != nullptr) ::munmap(data_, size_);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

}  // namespace lemo
