// SHA-256 of bytes that come in pieces.
#pragma once

#include <memory>
#include <string>
#include <string_view>

struct evp_md_ctx_st;

namespace lemo::coordinator {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  void Add(std::string_view data);
  // 64 lower-case hexadecimal digits of all that was added. Once; the object is then used up.
  std::string Finish();

 private:
  evp_md_ctx_st* const context_;
};

// The checksum in lower case; "" unless it is 64 hexadecimal digits.
std::string NormalizedSha256(std::string_view sha256);

}  // namespace lemo::coordinator
