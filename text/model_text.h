// What a model directory says about text: its tokenizer, its chat template, its special tokens.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace lemo::text {

// Tokens of a conversation and which of them are trained (the mask is as long as the ids).
struct ChatTokens {
  std::vector<int32_t> ids;
  std::vector<uint8_t> trained;
};

struct ChatOptions {
  std::string_view tools_json;  // empty for none
  // Train on every token instead of on the assistant's turns.
  bool train_all = false;
  // Count the role header of a trained turn as part of it.
  bool train_header = false;
  // One entry a message, or empty for all 1: an assistant turn of weight 0 carries no loss.
  std::vector<uint8_t> weights;
  // As RenderOptions::now_s.
  int64_t now_s = -1;
};

// Immutable and safe to use from several threads. Cheap to copy.
class ModelText {
 public:
  // Reads tokenizer.json, tokenizer_config.json, special_tokens_map.json, generation_config.json,
  // config.json and chat_template.jinja (which wins over the template in tokenizer_config.json).
  // All but the first may be absent. Special tokens are what the first file in this order says that
  // names a token of the vocabulary; of several end tokens of generation_config.json the first.
  // NotFound when there is no tokenizer.json; InvalidArgument when a file does not parse.
  static absl::StatusOr<ModelText> Load(const std::filesystem::path& model_dir);

  const Tokenizer& tokenizer() const { return tokenizer_; }
  // Absent when the model has none.
  const std::optional<ChatTemplate>& chat_template() const { return chat_template_; }
  // SHA-256 of tokenizer.json, hex.
  const std::string& tokenizer_hash() const { return tokenizer_hash_; }

  // -1 when the model names none.
  int32_t bos_id() const { return bos_id_; }
  int32_t eos_id() const { return eos_id_; }
  const std::string& bos_token() const { return bos_token_; }
  const std::string& eos_token() const { return eos_token_; }
  // Whether plain text gets a BOS in front: what the tokenizer's post-processor does.
  bool adds_bos() const { return adds_bos_; }

  // Renders the conversation and tokenises it. The mask covers each assistant turn: the content,
  // and the template's text after it up to and including the end-of-turn token; the role header is
  // not trained. Turns are found by rendering prefixes of the conversation and, where a template
  // renders a prefix otherwise than the whole (drops earlier reasoning, say), by rendering it with
  // other content; where neither tells, the error says so and at which message. Tool calls are
  // passed to the template as they are: most templates want `arguments` as an object, not as a
  // string of JSON. Errors: FailedPrecondition without a template, InvalidArgument otherwise.
  absl::StatusOr<ChatTokens> EncodeChat(std::string_view messages_json,
                                        const ChatOptions& options) const;

 private:
  Tokenizer tokenizer_;
  std::optional<ChatTemplate> chat_template_;
  std::string tokenizer_hash_;
  std::string bos_token_, eos_token_;
  int32_t bos_id_ = -1, eos_id_ = -1;
  bool adds_bos_ = false;
};

}  // namespace lemo::text
