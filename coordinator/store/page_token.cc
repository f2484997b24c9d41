#include "coordinator/store/page_token.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"

namespace lemo::coordinator {
namespace {

constexpr size_t kPositionBytes = 16;
// Hexadecimal digits of the seal: 96 bits.
constexpr size_t kSealDigits = 24;

void AppendInt(int64_t value, std::string* out) {
  for (int shift = 56; shift >= 0; shift -= 8) {
    out->push_back(static_cast<char>(static_cast<uint64_t>(value) >> shift));
  }
}

int64_t ReadInt(std::string_view bytes) {
  uint64_t value = 0;
  for (const char byte : bytes.substr(0, 8)) value = value << 8 | static_cast<uint8_t>(byte);
  return static_cast<int64_t>(value);
}

// Fixed-length parts first, so that no two inputs run into the same bytes.
std::string Seal(std::string_view key, std::string_view position, std::string_view scope) {
  std::string sealed(key);
  sealed.append(position).append(scope);
  return Sha256Hex(sealed).substr(0, kSealDigits);
}

}  // namespace

std::string EncodePageToken(std::string_view key, std::string_view scope,
                            const PagePosition& position) {
  std::string bytes;
  AppendInt(position.time_ns, &bytes);
  AppendInt(position.number, &bytes);
  bytes += absl::HexStringToBytes(Seal(key, bytes, scope));
  std::string token;
  absl::WebSafeBase64Escape(bytes, &token);
  return token;
}

absl::StatusOr<PagePosition> DecodePageToken(std::string_view key, std::string_view scope,
                                             std::string_view token) {
  std::string bytes;
  const bool good = token.size() <= 64 && absl::WebSafeBase64Unescape(std::string(token), &bytes) &&
                    bytes.size() == kPositionBytes + kSealDigits / 2;
  if (good) {
    // Made again and compared, as one place can be spelt in several ways.
    const PagePosition place{ReadInt(bytes), ReadInt(std::string_view(bytes).substr(8))};
    if (EncodePageToken(key, scope, place) == token) return place;
  }
  return absl::InvalidArgumentError(
      "page_token: not a token of this list; give the next_page_token of a list with the same "
      "filter and order, or none to begin anew");
}

}  // namespace lemo::coordinator
