#include "cli/uuid.h"

#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace lemo::cli {
namespace {

// `hex` has 32 digits at least.
std::string Uuid(std::string hex, char version) {
  hex.resize(32, '0');
  hex[12] = version;
  // The two highest bits of this digit are 10.
  const int digit = hex[16] <= '9' ? hex[16] - '0' : hex[16] - 'a' + 10;
  hex[16] = "89ab"[digit & 3];
  return absl::StrCat(hex.substr(0, 8), "-", hex.substr(8, 4), "-", hex.substr(12, 4), "-",
                      hex.substr(16, 4), "-", hex.substr(20));
}

}  // namespace

std::string RandomUuid() {
  std::random_device device;
  std::string hex;
  for (int i = 0; i < 4; ++i) absl::StrAppendFormat(&hex, "%08x", device());
  return Uuid(std::move(hex), '4');
}

std::string UuidOfSha256(const std::string& hex) { return Uuid(hex.substr(0, 32), '8'); }

}  // namespace lemo::cli
