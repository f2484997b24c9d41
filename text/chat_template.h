// Chat templates: the Jinja dialect of Hugging Face's tokenizers, run by minijinja with its
// Python-method compatibility. White-space rules, functions and filters are those that transformers
// sets up; `{% generation %}` tags are accepted and have no effect. Rendering is bounded in steps,
// depth and size of the text, so that a hostile template ends in an error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace lemo::text {

struct RenderOptions {
  // JSON array of tool definitions; empty for none.
  std::string_view tools_json;
  bool add_generation_prompt = false;
  // Special token texts that templates name.
  std::string_view bos_token;
  std::string_view eos_token;
  // Only the first so many messages.
  size_t message_limit = SIZE_MAX;
  // What `strftime_now` takes for now: seconds since 1970, UTC; negative for the clock. Fix it
  // where a text must come out the same on another day.
  int64_t now_s = -1;
};

// Immutable and safe to use from several threads. Cheap to copy.
class ChatTemplate {
 public:
  // InvalidArgument with the template's line when it does not parse.
  static absl::StatusOr<ChatTemplate> Compile(std::string source);

  // The text of a conversation. `messages_json` is a JSON array of messages. InvalidArgument with
  // the template's own words when it calls raise_exception.
  absl::StatusOr<std::string> Render(std::string_view messages_json,
                                     const RenderOptions& options) const;

  const std::string& source() const;
  // SHA-256 of the source, hex: stored with a run and written to its export.
  const std::string& hash() const;

 private:
  struct Handle;
  std::shared_ptr<const Handle> handle_;
};

}  // namespace lemo::text
