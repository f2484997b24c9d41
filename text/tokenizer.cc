#include "text/tokenizer.h"

#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "text/rust_bridge.h"

namespace lemo::text {

struct Tokenizer::Handle {
  explicit Handle(LemoTokenizer* tokenizer) : rust(tokenizer) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() { lemo_tokenizer_free(rust); }

  LemoTokenizer* rust;
};

absl::StatusOr<Tokenizer> Tokenizer::Load(const std::filesystem::path& tokenizer_json) {
  LEMO_ASSIGN_OR_RETURN(const std::string json, ReadFile(tokenizer_json));
  return Parse(json, tokenizer_json.string());
}

absl::StatusOr<Tokenizer> Tokenizer::Parse(std::string_view json, const std::string& name) {
  LemoTokenizer* rust = nullptr;
  LemoBytes error{};
  if (const int32_t code = lemo_tokenizer_load(View(json), &rust, &error); code != kLemoOk) {
    return TakeError(code, name, error);
  }
  Tokenizer tokenizer;
  tokenizer.handle_ = std::make_shared<const Handle>(rust);
  return tokenizer;
}

absl::StatusOr<Encoding> Tokenizer::Encode(std::string_view text, bool add_special_tokens) const {
  LemoTokens tokens{};
  LemoBytes error{};
  if (const int32_t code =
          lemo_tokenizer_encode(handle_->rust, View(text), add_special_tokens, &tokens, &error);
      code != kLemoOk) {
    return TakeError(code, "cannot tokenise", error);
  }
  const absl::Cleanup free_tokens = [&] { lemo_tokens_free(tokens); };
  Encoding encoding;
  encoding.ids.reserve(tokens.size);
  encoding.offsets.reserve(tokens.size);
  for (size_t i = 0; i < tokens.size; ++i) {
    encoding.ids.push_back(tokens.data[i].id);
    encoding.offsets.push_back({tokens.data[i].begin, tokens.data[i].end});
  }
  return encoding;
}

absl::StatusOr<std::string> Tokenizer::Decode(const std::vector<int32_t>& ids,
                                              bool skip_special_tokens) const {
  LemoBytes text{}, error{};
  if (const int32_t code = lemo_tokenizer_decode(handle_->rust, ids.data(), ids.size(),
                                                 skip_special_tokens, &text, &error);
      code != kLemoOk) {
    return TakeError(code, "cannot decode", error);
  }
  return Take(text);
}

int32_t Tokenizer::vocabulary_size() const { return lemo_tokenizer_vocabulary_size(handle_->rust); }

int32_t Tokenizer::TokenToId(std::string_view token) const {
  return lemo_tokenizer_token_to_id(handle_->rust, View(token));
}

absl::StatusOr<std::string> Tokenizer::IdToToken(int32_t id) const {
  LemoBytes token{}, error{};
  if (lemo_tokenizer_id_to_token(handle_->rust, id, &token, &error) != kLemoOk) {
    return absl::NotFoundError(Take(error));
  }
  return Take(token);
}

bool Tokenizer::IsSpecial(int32_t id) const { return lemo_tokenizer_is_special(handle_->rust, id); }

}  // namespace lemo::text
