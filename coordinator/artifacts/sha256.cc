#include "coordinator/artifacts/sha256.h"

#include <openssl/evp.h>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"

namespace lemo::coordinator {

Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
  EVP_DigestInit_ex(context_, EVP_sha256(), nullptr);
}

Sha256::~Sha256() { EVP_MD_CTX_free(context_); }

void Sha256::Add(std::string_view data) { EVP_DigestUpdate(context_, data.data(), data.size()); }

std::string Sha256::Finish() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  EVP_DigestFinal_ex(context_, digest, &length);
  return absl::BytesToHexString(std::string(reinterpret_cast<const char*>(digest), length));
}

std::string NormalizedSha256(std::string_view sha256) {
  if (sha256.size() != 64) return "";
  std::string lower;
  for (const char c : sha256) {
    if (!absl::ascii_isxdigit(static_cast<unsigned char>(c))) return "";
    lower += absl::ascii_tolower(static_cast<unsigned char>(c));
  }
  return lower;
}

}  // namespace lemo::coordinator
