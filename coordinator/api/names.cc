#include "coordinator/api/names.h"

#include <openssl/rand.h>

#include <algorithm>
#include <array>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace lemo::coordinator {

std::string NewId() {
  constexpr std::string_view kDigits = "abcdefghijklmnopqrstuvwxyz234567";
  std::array<unsigned char, 16> random;
  // Fails only when the system has no random source; then nothing here is safe.
  if (RAND_bytes(random.data(), random.size()) != 1) std::abort();
  std::string id;
  for (const unsigned char byte : random) id += kDigits[byte % kDigits.size()];
  id[0] = kDigits[random[0] % 26];
  return id;
}

bool IsId(std::string_view id) {
  return !id.empty() && id.size() <= 63 && absl::ascii_isalnum(id[0]) &&
         std::all_of(id.begin(), id.end(), [](unsigned char c) {
           return absl::ascii_isalnum(c) || c == '-' || c == '_' || c == '.';
         });
}

std::string Shortened(const std::string& text, size_t most) {
  if (text.size() <= most) return text;
  while (most > 0 && (static_cast<unsigned char>(text[most]) & 0xC0) == 0x80) --most;
  return text.substr(0, most);
}

absl::Status CheckName(std::string_view collection, const std::string& name,
                       const std::string& field) {
  const std::string prefix = std::string(collection) + "/";
  if (name.compare(0, prefix.size(), prefix) == 0 &&
      IsId(std::string_view(name).substr(prefix.size()))) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": expected ", prefix, "{id}, got \"", Shortened(name), "\""));
}

}  // namespace lemo::coordinator
