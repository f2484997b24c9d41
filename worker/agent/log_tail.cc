#include "worker/agent/log_tail.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "absl/cleanup/cleanup.h"

namespace lemo::agent {
namespace {

constexpr int64_t kChunkBytes = 32 << 10;

std::string ReadPart(const std::filesystem::path& path, int64_t offset, int64_t bytes) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return "";
  absl::Cleanup close = [fd] { ::close(fd); };
  std::string data(static_cast<size_t>(bytes), '\0');
  const ssize_t got = ::pread(fd, data.data(), data.size(), offset);
  data.resize(got > 0 ? static_cast<size_t>(got) : 0);
  return data;
}

// Bytes that are no UTF-8 become question marks: protobuf refuses them in a string.
std::string ValidUtf8(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const size_t length = byte < 0x80                    ? 1
                          : byte >= 0xC2 && byte <= 0xDF ? 2
                          : (byte & 0xF0) == 0xE0        ? 3
                          : byte >= 0xF0 && byte <= 0xF4 ? 4
                                                         : 0;
    bool good = length > 0 && i + length <= text.size();
    for (size_t k = 1; good && k < length; ++k) {
      good = (static_cast<unsigned char>(text[i + k]) & 0xC0) == 0x80;
    }
    if (good && length > 2) {
      const auto second = static_cast<unsigned char>(text[i + 1]);
      good = !(byte == 0xE0 && second < 0xA0) && !(byte == 0xED && second > 0x9F) &&
             !(byte == 0xF0 && second < 0x90) && !(byte == 0xF4 && second > 0x8F);
    }
    if (good) {
      out.append(text, i, length);
      i += length;
    } else {
      out += '?';
      ++i;
    }
  }
  return out;
}

}  // namespace

lemo::v1::LogChunk LogTail::Next() {
  lemo::v1::LogChunk chunk;
  chunk.set_rank(rank_);
  chunk.set_attempt(attempt_);
  chunk.set_offset(offset_);
  if (offset_ < kSentMax) chunk.set_data(ReadPart(path_, offset_, kChunkBytes));
  offset_ += static_cast<int64_t>(chunk.data().size());
  return chunk;
}

std::string LastBytes(const std::filesystem::path& path, int64_t bytes) {
  std::error_code error;
  const auto size = static_cast<int64_t>(std::filesystem::file_size(path, error));
  if (error) return "";
  const int64_t start = std::max<int64_t>(0, size - bytes);
  std::string text = ReadPart(path, start, bytes);
  if (start > 0) {
    const size_t line = text.find('\n');
    if (line != std::string::npos && line + 1 < text.size()) text.erase(0, line + 1);
  }
  return ValidUtf8(text);
}

}  // namespace lemo::agent
