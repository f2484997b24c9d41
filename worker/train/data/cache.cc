#include "worker/train/data/cache.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace lemo::train {
namespace {

constexpr std::array<char, 8> kMagic = {'L', 'E', 'M', 'O', 'T', 'O', 'K', '\n'};
constexpr uint32_t kVersion = 1;
constexpr size_t kHashBytes = 64;

struct Header {
  std::array<char, 8> magic = kMagic;
  uint32_t version = kVersion;
  uint32_t header_bytes = 0;
  std::array<char, kHashBytes> key = {};
  int64_t documents = 0;
  int64_t tokens = 0;
  DataCounts counts;
  std::array<char, kHashBytes> payload_hash = {};
  std::array<char, kHashBytes> header_hash = {};  // of all the above
};
static_assert(std::is_trivially_copyable_v<Header>);
static_assert(std::is_trivially_copyable_v<DocumentRecord> && sizeof(DocumentRecord) == 24);
static_assert(sizeof(Header) % alignof(DocumentRecord) == 0);
static_assert(offsetof(Header, header_hash) + kHashBytes == sizeof(Header),
              "no padding at the end");

// Bytes of the sections; every section begins where a DocumentRecord may.
int64_t Aligned(int64_t bytes) { return (bytes + 7) / 8 * 8; }
int64_t TokenBytes(int64_t tokens) { return Aligned(tokens * int64_t{sizeof(int32_t)}); }
int64_t TrainedBytes(int64_t tokens) { return Aligned(tokens); }
int64_t RecordBytes(int64_t documents) { return documents * int64_t{sizeof(DocumentRecord)}; }

std::string HeaderHash(const Header& header) {
  return Sha256Hex({reinterpret_cast<const char*>(&header), offsetof(Header, header_hash)});
}

template <typename T>
std::string_view AsBytes(std::span<const T> values) {
  return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
}

void CopyHash(const std::string& hash, std::array<char, kHashBytes>* out) {
  std::memcpy(out->data(), hash.data(), std::min(hash.size(), kHashBytes));
}

// A file that is written front to back through a buffer.
class Output {
 public:
  ~Output() {
    if (fd_ >= 0) ::close(fd_);
    if (!unlink_.empty()) ::unlink(unlink_.c_str());
  }

  absl::Status Create(const std::filesystem::path& path) {
    fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd_ < 0) return ErrnoStatus(errno, "create", path);
    path_ = unlink_ = path;
    return absl::OkStatus();
  }

  absl::Status Write(std::string_view bytes) {
    buffer_.append(bytes);
    bytes_ += static_cast<int64_t>(bytes.size());
    return buffer_.size() >= kBufferBytes ? Flush() : absl::OkStatus();
  }

  absl::Status Flush() {
    LEMO_RETURN_IF_ERROR(WriteAt(buffer_, bytes_ - static_cast<int64_t>(buffer_.size())));
    buffer_.clear();
    return absl::OkStatus();
  }

  absl::Status WriteAt(std::string_view bytes, int64_t offset) {
    while (!bytes.empty()) {
      const ssize_t wrote = ::pwrite(fd_, bytes.data(), bytes.size(), offset);
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote < 0) return ErrnoStatus(errno, "write", path_);
      bytes.remove_prefix(static_cast<size_t>(wrote));
      offset += wrote;
    }
    return absl::OkStatus();
  }

  // Calls `take` with all that was written, a buffer at a time.
  template <typename Take>
  absl::Status ReadBack(int64_t from, Take take) {
    LEMO_RETURN_IF_ERROR(Flush());
    std::string chunk(kBufferBytes, '\0');
    for (int64_t at = from; at < bytes_;) {
      const ssize_t got = ::pread(fd_, chunk.data(), chunk.size(), at);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return ErrnoStatus(errno, "read", path_);
      if (got == 0) return absl::InternalError(absl::StrCat(path_.string(), " shrank while open"));
      LEMO_RETURN_IF_ERROR(take(std::string_view(chunk).substr(0, static_cast<size_t>(got))));
      at += got;
    }
    return absl::OkStatus();
  }

  absl::Status MoveTo(const std::filesystem::path& path) {
    if (::fsync(fd_) != 0) return ErrnoStatus(errno, "sync", path_);
    if (::rename(path_.c_str(), path.c_str()) != 0) return ErrnoStatus(errno, "rename to", path);
    unlink_.clear();
    return SyncPath(path.has_parent_path() ? path.parent_path() : std::filesystem::path("."));
  }

 private:
  static constexpr size_t kBufferBytes = size_t{1} << 18;

  std::filesystem::path path_;
  std::filesystem::path unlink_;
  int fd_ = -1;
  std::string buffer_;
  int64_t bytes_ = 0;
};

class FileCacheWriter : public CacheWriter {
 public:
  FileCacheWriter(std::filesystem::path path, std::string key)
      : path_(std::move(path)), key_(std::move(key)) {}

  absl::Status Open() {
    // Several processes, and several writers of one process, may be at the same cache.
    static std::atomic<int64_t> serial = 0;
    const std::string stem =
        absl::StrCat(".", path_.filename().string(), ".", ::getpid(), ".", serial.fetch_add(1));
    const std::filesystem::path folder = path_.parent_path();
    LEMO_RETURN_IF_ERROR(main_.Create(folder / absl::StrCat(stem, ".tmp")));
    LEMO_RETURN_IF_ERROR(trained_.Create(folder / absl::StrCat(stem, ".trained.tmp")));
    LEMO_RETURN_IF_ERROR(records_.Create(folder / absl::StrCat(stem, ".records.tmp")));
    // Room for the header, which is known last.
    return main_.Write(std::string(sizeof(Header), '\0'));
  }

  absl::Status Add(std::span<const int32_t> tokens, std::span<const uint8_t> trained, int64_t line,
                   int32_t labels) override {
    const DocumentRecord record{.begin = header_.tokens,
                                .line = line,
                                .length = static_cast<int32_t>(tokens.size()),
                                .labels = labels};
    LEMO_RETURN_IF_ERROR(main_.Write(AsBytes(tokens)));
    LEMO_RETURN_IF_ERROR(trained_.Write(AsBytes(trained)));
    LEMO_RETURN_IF_ERROR(records_.Write(AsBytes(std::span(&record, 1))));
    header_.tokens += static_cast<int64_t>(tokens.size());
    ++header_.documents;
    return absl::OkStatus();
  }

  absl::Status Finish(const DataCounts& counts) override {
    const auto append = [this](std::string_view bytes) { return main_.Write(bytes); };
    const int64_t tokens = header_.tokens;
    LEMO_RETURN_IF_ERROR(
        append(std::string(TokenBytes(tokens) - tokens * int64_t{sizeof(int32_t)}, '\0')));
    LEMO_RETURN_IF_ERROR(trained_.ReadBack(0, append));
    LEMO_RETURN_IF_ERROR(append(std::string(TrainedBytes(tokens) - tokens, '\0')));
    LEMO_RETURN_IF_ERROR(records_.ReadBack(0, append));

    BlockHasher hasher;
    LEMO_RETURN_IF_ERROR(main_.ReadBack(sizeof(Header), [&hasher](std::string_view bytes) {
      hasher.Add(bytes);
      return absl::OkStatus();
    }));
    header_.header_bytes = sizeof(Header);
    header_.counts = counts;
    CopyHash(key_, &header_.key);
    CopyHash(hasher.Finish(), &header_.payload_hash);
    CopyHash(HeaderHash(header_), &header_.header_hash);
    LEMO_RETURN_IF_ERROR(main_.WriteAt(AsBytes(std::span<const Header>(&header_, 1)), 0));
    return main_.MoveTo(path_);
  }

 private:
  const std::filesystem::path path_;
  const std::string key_;
  Header header_;
  Output main_, trained_, records_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CacheWriter>> CacheWriter::Create(const std::filesystem::path& path,
                                                                 const std::string& key) {
  auto writer = std::make_unique<FileCacheWriter>(path, key);
  LEMO_RETURN_IF_ERROR(writer->Open());
  return writer;
}

absl::StatusOr<TokenCache> TokenCache::Open(const std::filesystem::path& path,
                                            const std::string& key) {
  TokenCache cache;
  LEMO_ASSIGN_OR_RETURN(cache.file_, MappedFile::Open(path));
  const std::string_view bytes = cache.file_.bytes();
  const auto torn = [&path](const std::string& what) {
    return absl::DataLossError(absl::StrCat("the token cache ", path.string(), " ", what));
  };
  Header header;
  if (bytes.size() < sizeof(Header)) return torn("is shorter than its header");
  std::memcpy(&header, bytes.data(), sizeof(Header));
  if (header.magic != kMagic || header.version != kVersion ||
      header.header_bytes != sizeof(Header)) {
    return torn("is of another version");
  }
  if (HeaderHash(header) != std::string_view(header.header_hash.data(), kHashBytes)) {
    return torn("has a damaged header");
  }
  if (key != std::string_view(header.key.data(), kHashBytes)) return torn("belongs to other data");
  // The header is one that we wrote, so its sizes are sane.
  const int64_t token_bytes = TokenBytes(header.tokens);
  const int64_t trained_bytes = TrainedBytes(header.tokens);
  const int64_t size =
      int64_t{sizeof(Header)} + token_bytes + trained_bytes + RecordBytes(header.documents);
  if (static_cast<int64_t>(bytes.size()) != size) {
    return torn(absl::StrCat("has ", bytes.size(), " bytes instead of ", size));
  }
  LEMO_ASSIGN_OR_RETURN(const std::string hash, HashFile(path, sizeof(Header)));
  if (hash != std::string_view(header.payload_hash.data(), kHashBytes)) return torn("is damaged");

  const char* payload = bytes.data() + sizeof(Header);
  cache.tokens_ = reinterpret_cast<const int32_t*>(payload);
  cache.trained_ = reinterpret_cast<const uint8_t*>(payload + token_bytes);
  cache.records_ = {reinterpret_cast<const DocumentRecord*>(payload + token_bytes + trained_bytes),
                    static_cast<size_t>(header.documents)};
  cache.counts_ = header.counts;
  return cache;
}

std::span<const int32_t> TokenCache::tokens(int64_t i) const {
  return {tokens_ + record(i).begin, static_cast<size_t>(record(i).length)};
}

std::span<const uint8_t> TokenCache::trained(int64_t i) const {
  return {trained_ + record(i).begin, static_cast<size_t>(record(i).length)};
}

}  // namespace lemo::train
