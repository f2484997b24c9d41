// The C ABI of the Rust crate: what src/ffi.rs exports. For text/*.cc only.
//
// Functions that can fail return a LemoCode and fill `out` on kLemoOk, `error` (a reason, UTF-8)
// otherwise; the other one is left alone. Handles are immutable and may be used from several
// threads.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

enum LemoCode : int32_t { kLemoOk = 0, kLemoInvalid = 1, kLemoPanicked = 2 };

// Bytes of the caller, for the time of the call. `data` may be null when `size` is 0.
struct LemoView {
  const char* data;
  size_t size;
};

// Arrays of the Rust side, given back through the matching free.
struct LemoBytes {
  char* data;
  size_t size;
};
struct LemoToken {
  int32_t id;
  uint32_t begin;
  uint32_t end;
};
struct LemoTokens {
  LemoToken* data;
  size_t size;
};
void lemo_bytes_free(LemoBytes bytes);
void lemo_tokens_free(LemoTokens tokens);

struct LemoTokenizer;
int32_t lemo_tokenizer_load(LemoView json, LemoTokenizer** out, LemoBytes* error);
void lemo_tokenizer_free(LemoTokenizer* tokenizer);
int32_t lemo_tokenizer_encode(const LemoTokenizer* tokenizer, LemoView text,
                              bool add_special_tokens, LemoTokens* out, LemoBytes* error);
int32_t lemo_tokenizer_decode(const LemoTokenizer* tokenizer, const int32_t* ids, size_t id_count,
                              bool skip_special_tokens, LemoBytes* out, LemoBytes* error);
int32_t lemo_tokenizer_vocabulary_size(const LemoTokenizer* tokenizer);
// -1 when there is no such token.
int32_t lemo_tokenizer_token_to_id(const LemoTokenizer* tokenizer, LemoView token);
int32_t lemo_tokenizer_id_to_token(const LemoTokenizer* tokenizer, int32_t id, LemoBytes* out,
                                   LemoBytes* error);
bool lemo_tokenizer_is_special(const LemoTokenizer* tokenizer, int32_t id);

struct LemoTemplate;
struct LemoConversation {
  LemoView messages;  // JSON array
  size_t message_limit;
  LemoView tools;  // JSON array, or empty
  LemoView bos_token;
  LemoView eos_token;
  int64_t now_s;
  bool add_generation_prompt;
};
int32_t lemo_template_compile(LemoView source, LemoTemplate** out, LemoBytes* error);
void lemo_template_free(LemoTemplate* handle);
int32_t lemo_template_render(const LemoTemplate* handle, const LemoConversation* conversation,
                             LemoBytes* out, LemoBytes* error);

}  // extern "C"
