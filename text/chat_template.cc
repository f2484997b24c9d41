#include "text/chat_template.h"

#include <utility>

#include "common/files.h"
#include "text/rust_bridge.h"

namespace lemo::text {

struct ChatTemplate::Handle {
  explicit Handle(LemoTemplate* handle) : rust(handle) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() { lemo_template_free(rust); }

  LemoTemplate* rust;
  std::string source;
  std::string hash;
};

absl::StatusOr<ChatTemplate> ChatTemplate::Compile(std::string source) {
  LemoTemplate* rust = nullptr;
  LemoBytes error{};
  if (const int32_t code = lemo_template_compile(View(source), &rust, &error); code != kLemoOk) {
    return TakeError(code, "chat template", error);
  }
  auto handle = std::make_shared<Handle>(rust);
  handle->hash = Sha256Hex(source);
  handle->source = std::move(source);
  ChatTemplate compiled;
  compiled.handle_ = std::move(handle);
  return compiled;
}

absl::StatusOr<std::string> ChatTemplate::Render(std::string_view messages_json,
                                                 const RenderOptions& options) const {
  const LemoConversation conversation = {.messages = View(messages_json),
                                         .message_limit = options.message_limit,
                                         .tools = View(options.tools_json),
                                         .bos_token = View(options.bos_token),
                                         .eos_token = View(options.eos_token),
                                         .now_s = options.now_s,
                                         .add_generation_prompt = options.add_generation_prompt};
  LemoBytes text{}, error{};
  if (const int32_t code = lemo_template_render(handle_->rust, &conversation, &text, &error);
      code != kLemoOk) {
    return TakeError(code, "chat template", error);
  }
  return Take(text);
}

const std::string& ChatTemplate::source() const { return handle_->source; }

const std::string& ChatTemplate::hash() const { return handle_->hash; }

}  // namespace lemo::text
