#include "worker/train/data/line_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace lemo::train {
namespace {

constexpr size_t kChunkBytes = size_t{1} << 18;

}  // namespace

absl::StatusOr<LineReader> LineReader::Open(const std::filesystem::path& path,
                                            int64_t max_line_bytes) {
  LineReader reader;
  reader.path_ = path;
  reader.max_line_bytes_ = max_line_bytes;
  // Without O_NONBLOCK, opening a pipe that nobody writes to would hang.
  reader.fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (reader.fd_ < 0) return ErrnoStatus(errno, "open", path);
  struct stat info;
  if (::fstat(reader.fd_, &info) != 0) return ErrnoStatus(errno, "stat", path);
  if (S_ISDIR(info.st_mode)) return ErrnoStatus(EISDIR, "read", path);
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path.string(), " is not a regular file"));
  }
  return reader;
}

LineReader::LineReader(LineReader&& other) noexcept { *this = std::move(other); }

LineReader& LineReader::operator=(LineReader&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(max_line_bytes_, other.max_line_bytes_);
  std::swap(buffer_, other.buffer_);
  std::swap(begin_, other.begin_);
  std::swap(line_number_, other.line_number_);
  return *this;
}

LineReader::~LineReader() {
  if (fd_ >= 0) ::close(fd_);
}

absl::StatusOr<bool> LineReader::Fill() {
  buffer_.erase(0, begin_);
  begin_ = 0;
  const size_t used = buffer_.size();
  buffer_.resize(used + kChunkBytes);
  ssize_t got;
  do {
    got = ::read(fd_, buffer_.data() + used, kChunkBytes);
  } while (got < 0 && errno == EINTR);
  buffer_.resize(used + (got > 0 ? static_cast<size_t>(got) : 0));
  if (got < 0) return ErrnoStatus(errno, "read", path_);
  return got > 0;
}

absl::StatusOr<LineReader::Result> LineReader::Next(std::string_view* line) {
  *line = {};
  size_t searched = 0;  // bytes after begin_ known to hold no '\n'
  bool too_long = false;
  for (;;) {
    const size_t newline = buffer_.find('\n', begin_ + searched);
    const bool found = newline != std::string::npos;
    const size_t length = (found ? newline : buffer_.size()) - begin_;
    too_long = too_long || length > static_cast<size_t>(max_line_bytes_);
    if (found) {
      ++line_number_;
      *line = too_long ? std::string_view() : std::string_view(buffer_).substr(begin_, length);
      begin_ = newline + 1;
      return too_long ? Result::kTooLong : Result::kLine;
    }
    // What is left of a line that is too long is not kept.
    if (too_long) begin_ = buffer_.size();
    searched = buffer_.size() - begin_;
    LEMO_ASSIGN_OR_RETURN(const bool more, Fill());
    if (more) continue;
    if (too_long) {
      ++line_number_;
      return Result::kTooLong;
    }
    if (buffer_.empty()) return Result::kEnd;
    ++line_number_;
    *line = buffer_;
    begin_ = buffer_.size();
    return Result::kLine;
  }
}

}  // namespace lemo::train
