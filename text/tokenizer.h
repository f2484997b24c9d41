// Tokenizers in Hugging Face's tokenizer.json format. The work is done by the `tokenizers` crate,
// so every pre-tokenizer, normalizer and model of that format works.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace lemo::text {

// Token ids of a text, and for every token the half-open byte range of the text it came from
// ({0, 0} for tokens that the post-processor added).
struct Encoding {
  struct Range {
    uint32_t begin = 0;
    uint32_t end = 0;
  };
  std::vector<int32_t> ids;
  std::vector<Range> offsets;
};

// Truncation and padding that a file asks for are ignored: lengths are the caller's business.
// Immutable after loading and safe to use from several threads. Cheap to copy.
class Tokenizer {
 public:
  // Errors: NotFound, InvalidArgument (with the crate's reason and the path).
  static absl::StatusOr<Tokenizer> Load(const std::filesystem::path& tokenizer_json);
  // The contents of a tokenizer.json; `name` stands in front of the reason of an error.
  static absl::StatusOr<Tokenizer> Parse(std::string_view json, const std::string& name);

  // `add_special_tokens` runs the post-processor (BOS and the like). Special tokens that are spelt
  // out in the text are always recognised. `text` must be UTF-8, else InvalidArgument.
  absl::StatusOr<Encoding> Encode(std::string_view text, bool add_special_tokens) const;
  // InvalidArgument for ids outside of the vocabulary.
  absl::StatusOr<std::string> Decode(const std::vector<int32_t>& ids,
                                     bool skip_special_tokens) const;

  // One more than the largest id, added tokens included.
  int32_t vocabulary_size() const;
  // -1 when there is no such token.
  int32_t TokenToId(std::string_view token) const;
  // The token as the vocabulary spells it. NotFound.
  absl::StatusOr<std::string> IdToToken(int32_t id) const;
  // Whether the token is marked as special (a control token, not text).
  bool IsSpecial(int32_t id) const;

 private:
  struct Handle;
  std::shared_ptr<const Handle> handle_;
};

}  // namespace lemo::text
