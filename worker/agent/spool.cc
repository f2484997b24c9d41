#include "worker/agent/spool.h"

#include <fcntl.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "worker/agent/event_reader.h"

namespace lemo::agent {
namespace {

constexpr size_t kHeaderBytes = 8;
// The agent's numbering adds a few bytes to what the reader lets through.
constexpr uint32_t kRecordBytesMax = EventReader::kEventBytesMax + 64;

void PutU32(uint32_t value, std::string* out) {
  for (int shift = 0; shift < 32; shift += 8) out->push_back(static_cast<char>(value >> shift));
}

uint32_t GetU32(const char* bytes) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) {
    value |= static_cast<uint32_t>(static_cast<unsigned char>(bytes[i])) << (8 * i);
  }
  return value;
}

uint32_t Crc(std::string_view bytes) {
  return static_cast<uint32_t>(::crc32(0, reinterpret_cast<const unsigned char*>(bytes.data()),
                                       static_cast<unsigned>(bytes.size())));
}

bool ReadAt(int fd, int64_t offset, char* out, size_t size) {
  while (size > 0) {
    const ssize_t got = ::pread(fd, out, size, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    out += got;
    offset += got;
    size -= static_cast<size_t>(got);
  }
  return true;
}

}  // namespace

absl::StatusOr<Spool> Spool::Open(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoStatus(errno, "open", path);
  Spool spool(path, fd);
  for (;;) {
    int64_t offset = spool.bytes_;
    const absl::StatusOr<std::string> record = spool.ReadRecord(&offset);
    if (!record.ok()) break;
    spool.Count(spool.bytes_);
    spool.bytes_ = offset;
  }
  if (::ftruncate(fd, spool.bytes_) != 0) return ErrnoStatus(errno, "cut", path);
  return spool;
}

Spool::Spool(Spool&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      last_(other.last_),
      bytes_(other.bytes_),
      offsets_(std::move(other.offsets_)) {}

Spool::~Spool() {
  if (fd_ >= 0) ::close(fd_);
}

void Spool::Count(int64_t offset) {
  if (last_ % kStride == 0) offsets_.push_back(offset);
  ++last_;
}

absl::StatusOr<std::string> Spool::ReadRecord(int64_t* offset) const {
  char header[kHeaderBytes];
  if (!ReadAt(fd_, *offset, header, kHeaderBytes)) {
    return absl::NotFoundError(absl::StrCat(path_.string(), ": no record at ", *offset));
  }
  const uint32_t length = GetU32(header);
  std::string bytes;
  if (length <= kRecordBytesMax) bytes.resize(length);
  // No event is empty, for its sequence; zeros are what a file system leaves after a power cut.
  if (length == 0 || length > kRecordBytesMax ||
      !ReadAt(fd_, *offset + static_cast<int64_t>(kHeaderBytes), bytes.data(), length) ||
      Crc(bytes) != GetU32(header + 4)) {
    return absl::NotFoundError(absl::StrCat(path_.string(), ": a torn record at ", *offset));
  }
  *offset += static_cast<int64_t>(kHeaderBytes) + length;
  return bytes;
}

absl::Status Spool::Append(std::vector<lemo::v1::RunEvent> events) {
  std::string out;
  std::vector<int64_t> starts;
  int64_t sequence = last_;
  for (lemo::v1::RunEvent& event : events) {
    event.set_sequence(++sequence);
    const std::string bytes = event.SerializeAsString();
    starts.push_back(bytes_ + static_cast<int64_t>(out.size()));
    PutU32(static_cast<uint32_t>(bytes.size()), &out);
    PutU32(Crc(bytes), &out);
    out += bytes;
  }
  for (size_t done = 0; done < out.size();) {
    const ssize_t wrote =
        ::pwrite(fd_, out.data() + done, out.size() - done, bytes_ + static_cast<int64_t>(done));
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return ErrnoStatus(errno, "write", path_);
    done += static_cast<size_t>(wrote);
  }
  for (const int64_t start : starts) Count(start);
  bytes_ += static_cast<int64_t>(out.size());
  return absl::OkStatus();
}

absl::Status Spool::Sync() {
  if (::fdatasync(fd_) != 0) return ErrnoStatus(errno, "sync", path_);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<lemo::v1::RunEvent>> Spool::Read(int64_t first, size_t count_max,
                                                            size_t bytes_max) const {
  std::vector<lemo::v1::RunEvent> events;
  if (first < 1 || first > last_) return events;
  const int64_t stride = (first - 1) / kStride;
  int64_t offset = offsets_[static_cast<size_t>(stride)];
  size_t bytes = 0;
  for (int64_t sequence = stride * kStride + 1; sequence <= last_; ++sequence) {
    LEMO_ASSIGN_OR_RETURN(const std::string record, ReadRecord(&offset));
    if (sequence < first) continue;
    bytes += record.size();
    if (!events.empty() && (bytes > bytes_max || events.size() >= count_max)) break;
    lemo::v1::RunEvent event;
    if (!event.ParseFromString(record)) {
      return absl::InternalError(absl::StrCat(path_.string(), ": event ", sequence, " is broken"));
    }
    events.push_back(std::move(event));
  }
  return events;
}

}  // namespace lemo::agent
