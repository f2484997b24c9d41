#include "worker/train/data/utf8.h"

#include <algorithm>
#include <cstdint>

namespace lemo::train {
namespace {

bool IsContinuation(unsigned char byte) { return (byte & 0xC0) == 0x80; }

// Bytes that a sequence with this first byte has; 0 for a byte that starts none.
size_t SequenceLength(unsigned char first) {
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first < 0xE0) return 2;
  if (first >= 0xE0 && first < 0xF0) return 3;
  if (first >= 0xF0 && first < 0xF5) return 4;
  return 0;
}

}  // namespace

size_t FindInvalidUtf8(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[at + i]); };
    const size_t length = SequenceLength(byte(0));
    if (length == 0 || text.size() - at < length) return at;
    for (size_t i = 1; i < length; ++i) {
      if (!IsContinuation(byte(i))) return at;
    }
    if (byte(0) == 0xE0 && byte(1) < 0xA0) return at;  // overlong
    if (byte(0) == 0xED && byte(1) > 0x9F) return at;  // surrogate
    if (byte(0) == 0xF0 && byte(1) < 0x90) return at;  // overlong
    if (byte(0) == 0xF4 && byte(1) > 0x8F) return at;  // above U+10FFFF
    at += length;
  }
  return std::string_view::npos;
}

size_t WholeUtf8Prefix(std::string_view text) {
  for (size_t back = 1; back <= std::min<size_t>(4, text.size()); ++back) {
    const size_t at = text.size() - back;
    const auto byte = static_cast<unsigned char>(text[at]);
    if (IsContinuation(byte)) continue;
    return SequenceLength(byte) > back ? at : text.size();
  }
  return text.size();
}

std::string_view Utf8Prefix(std::string_view text, size_t max_bytes) {
  if (text.size() <= max_bytes) return text;
  text = text.substr(0, max_bytes);
  return text.substr(0, WholeUtf8Prefix(text));
}

}  // namespace lemo::train
