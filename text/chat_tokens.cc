// Tokens and loss mask of a conversation.
//
// The rendering is tokenised once, as a whole: pieces tokenised apart would give tokens that the
// model never sees. So the mask is first found in bytes of the rendering, one range a turn, and
// then carried to the tokens by their offsets.
//
// Where a turn's text lies is the template's secret; it is found by rendering again and comparing:
//   1. Prefixes. messages[:i] with a generation prompt ends where turn i begins, messages[:i+1]
//   ends
//      where it ends, if both are prefixes of the whole rendering. That holds for most templates.
//   2. Probes. Templates that drop earlier reasoning or move tool definitions render a prefix
//   otherwise
//      than the whole. There the turn's content is replaced by another text: what changes in the
//      whole rendering is the content. The text that a template puts after a turn is learnt from
//      the same probe on messages[:i+1].
// Searching the rendering for the content itself was rejected: templates trim, escape and re-indent
// it, and short contents ("yes") occur elsewhere.
#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"
#include "text/model_text.h"

namespace lemo::text {
namespace {

// Keeps the order of keys, which shows in what templates print.
using Json = nlohmann::ordered_json;

// Half-open range of bytes of the rendering.
struct Span {
  size_t begin = 0;
  size_t end = 0;
};

// White space of ASCII at the end taken off.
std::string_view Visible(std::string_view text) {
  return text.substr(0, text.find_last_not_of(" \t\r\n\v\f") + 1);
}

size_t CommonPrefix(std::string_view a, std::string_view b) {
  const size_t limit = std::min(a.size(), b.size());
  return std::mismatch(a.begin(), a.begin() + limit, b.begin()).first - a.begin();
}

// Of the parts after the first `skip` bytes.
size_t CommonSuffix(std::string_view a, std::string_view b, size_t skip) {
  const size_t limit = std::min(a.size(), b.size()) - skip;
  return std::mismatch(a.rbegin(), a.rbegin() + limit, b.rbegin()).first - a.rbegin();
}

// A text that shares neither its first nor its last visible character with `text`, so that a
// comparison of renderings ends exactly at the borders of `text`.
std::string Unlike(std::string_view text) {
  const std::string_view visible = Visible(text);
  const size_t start = visible.find_first_not_of(" \t\r\n\v\f");
  const char first = !visible.empty() && visible[start] == 'q' ? 'x' : 'q';
  const char last = !visible.empty() && visible.back() == 'q' ? 'x' : 'q';
  return absl::StrCat(std::string(1, first), "probe", std::string(1, last));
}

// `message` with every text that the assistant wrote replaced.
Json Probe(Json message) {
  const auto replace = [](Json& value) {
    if (value.is_string()) value = Unlike(value.get_ref<const std::string&>());
  };
  if (const auto content = message.find("content"); content != message.end()) {
    replace(*content);
    if (content->is_array()) {
      for (Json& part : *content) {
        if (part.is_object() && part.contains("text")) replace(part["text"]);
      }
    }
  }
  if (const auto calls = message.find("tool_calls"); calls != message.end() && calls->is_array()) {
    for (Json& call : *calls) {
      if (!call.is_object()) continue;
      Json& function = call.contains("function") ? call["function"] : call;
      if (!function.is_object()) continue;
      if (function.contains("name")) replace(function["name"]);
      if (const auto arguments = function.find("arguments"); arguments != function.end()) {
        if (arguments->is_object()) {
          *arguments = {{"probe", "probe"}};
        } else {
          replace(*arguments);
        }
      }
    }
  }
  return message;
}

bool HasToolCalls(const Json& message) {
  const auto calls = message.find("tool_calls");
  return calls != message.end() && calls->is_array() && !calls->empty();
}

absl::StatusOr<Json> ParseMessages(std::string_view messages_json) {
  Json messages;
  try {
    messages = Json::parse(messages_json);
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("messages: ", error.what()));
  }
  if (!messages.is_array()) return absl::InvalidArgumentError("messages: not a JSON array");
  for (size_t i = 0; i < messages.size(); ++i) {
    if (!messages[i].is_object()) {
      return absl::InvalidArgumentError(absl::StrCat("messages[", i, "]: not a JSON object"));
    }
    const auto role = messages[i].find("role");
    if (role == messages[i].end() || !role->is_string()) {
      return absl::InvalidArgumentError(absl::StrCat("messages[", i, "].role: not a string"));
    }
  }
  return messages;
}

// Finds turns in the rendering of one conversation.
class TurnFinder {
 public:
  TurnFinder(const ChatTemplate& chat_template, const RenderOptions& base,
             std::string_view messages_json, const Json& messages, std::string_view whole,
             bool with_header)
      : template_(chat_template),
        base_(base),
        messages_json_(messages_json),
        messages_(messages),
        whole_(whole),
        with_header_(with_header),
        prompts_(chat_template.source().find("add_generation_prompt") != std::string::npos) {}

  // The text of message `index`: with its header, or from its content on. `from` is the end of the
  // turn before.
  absl::StatusOr<Span> Find(size_t index, size_t from) const {
    absl::StatusOr<Span> span = ByPrefixes(index);
    // Without a generation prompt in the template, the prefix before a turn ends before its header.
    if (!span.ok() || (!prompts_ && !with_header_)) {
      const absl::StatusOr<Span> probed = ByProbe(index, from);
      if (!span.ok()) {
        span = probed;
      } else if (probed.ok()) {
        span->begin = std::clamp(probed->begin, span->begin, span->end);
      }
    }
    LEMO_RETURN_IF_ERROR(span.status());
    if (span->begin < from) return Unclear(index, "its text overlaps the turn before");
    return span;
  }

 private:
  absl::StatusOr<std::string> Render(size_t message_limit, bool prompt) const {
    return Render(messages_json_, message_limit, prompt);
  }

  absl::StatusOr<std::string> Render(std::string_view messages_json, size_t message_limit,
                                     bool prompt) const {
    RenderOptions options = base_;
    options.message_limit = message_limit;
    options.add_generation_prompt = prompt;
    return template_.Render(messages_json, options);
  }

  static absl::Status Unclear(size_t index, const std::string& reason) {
    return absl::InvalidArgumentError(absl::StrCat(
        "messages[", index, "]: cannot tell which part of the text is this turn: ", reason));
  }

  absl::StatusOr<Span> ByPrefixes(size_t index) const {
    LEMO_ASSIGN_OR_RETURN(const std::string before, Render(index, !with_header_));
    LEMO_ASSIGN_OR_RETURN(const std::string through, Render(index + 1, false));
    if (!whole_.starts_with(through) || !through.starts_with(before)) {
      return Unclear(index,
                     "the template renders the conversation up to it otherwise than the whole");
    }
    return Span{before.size(), through.size()};
  }

  absl::StatusOr<Span> ByProbe(size_t index, size_t from) const {
    Json probed_messages = messages_;
    probed_messages[index] = Probe(messages_[index]);
    const std::string probed_json = probed_messages.dump();

    absl::StatusOr<std::string> probed = Render(probed_json, SIZE_MAX, false);
    if (!probed.ok()) return Unclear(index, std::string(probed.status().message()));
    const size_t changed = CommonPrefix(whole_, *probed);
    if (changed == whole_.size() && changed == probed->size()) {
      return Unclear(index, "the template does not print its content");
    }
    const size_t content_end = whole_.size() - CommonSuffix(whole_, *probed, changed);

    LEMO_ASSIGN_OR_RETURN(const size_t begin, BeginFromProbe(index, from, changed));
    LEMO_ASSIGN_OR_RETURN(const std::string tail, Tail(index, probed_json));
    if (whole_.substr(content_end).starts_with(tail)) {
      return Span{begin, content_end + tail.size()};
    }
    const std::string_view visible_tail = Visible(tail);
    if (!visible_tail.empty() && whole_.substr(content_end).starts_with(visible_tail)) {
      return Span{begin, content_end + visible_tail.size()};
    }
    return Unclear(index, "the template ends it otherwise than when it is the last message");
  }

  // What the template puts after message `index` when that is the last one.
  absl::StatusOr<std::string> Tail(size_t index, std::string_view probed_json) const {
    const absl::StatusOr<std::string> through = Render(index + 1, false);
    if (!through.ok()) return Unclear(index, std::string(through.status().message()));
    const absl::StatusOr<std::string> probed = Render(probed_json, index + 1, false);
    if (!probed.ok()) return Unclear(index, std::string(probed.status().message()));
    const size_t same = CommonSuffix(*through, *probed, CommonPrefix(*through, *probed));
    return through->substr(through->size() - same);
  }

  // Where the turn begins whose content begins at `changed`: after the last generation prompt
  // before it, which takes in text that the template adds inside the turn (an empty block of
  // reasoning).
  absl::StatusOr<size_t> BeginFromProbe(size_t index, size_t from, size_t changed) const {
    const std::string prompt = GenerationPrompt(index);
    if (!prompt.empty() && changed >= prompt.size()) {
      const size_t found = whole_.rfind(prompt, changed - prompt.size());
      if (found != std::string_view::npos && found >= from) {
        return with_header_ ? found : found + prompt.size();
      }
    }
    if (with_header_) return Unclear(index, "its header was not found");
    if (HasToolCalls(messages_[index])) {
      return Unclear(index, "the start of its tool calls was not found");
    }
    // A space before the first word belongs to that word's token.
    size_t begin = changed;
    while (begin > from && whole_[begin - 1] == ' ') --begin;
    return begin;
  }

  std::string GenerationPrompt(size_t index) const {
    if (!prompts_) return "";
    const absl::StatusOr<std::string> with = Render(index, true);
    const absl::StatusOr<std::string> without = Render(index, false);
    if (!with.ok() || !without.ok() || !with->starts_with(*without)) return "";
    return with->substr(without->size());
  }

  const ChatTemplate& template_;
  const RenderOptions base_;
  const std::string_view messages_json_;
  const Json& messages_;
  const std::string_view whole_;
  const bool with_header_;
  const bool prompts_;
};

// Tokens [first, last) of a turn. A token that begins in the header is the header's; text after the
// end-of-turn token (a new line, in most templates) belongs to no turn.
struct TokenSpan {
  size_t first = 0;
  size_t last = 0;
};

TokenSpan TokensOf(const Span& span, std::string_view whole, const Encoding& encoding,
                   const Tokenizer& tokenizer) {
  const auto first_from = [&](size_t byte) {
    return static_cast<size_t>(
        std::partition_point(encoding.offsets.begin(), encoding.offsets.end(),
                             [&](const Encoding::Range& range) { return range.begin < byte; }) -
        encoding.offsets.begin());
  };
  TokenSpan tokens{first_from(span.begin), first_from(span.end)};
  for (size_t i = tokens.last; i-- > tokens.first;) {
    if (!tokenizer.IsSpecial(encoding.ids[i])) continue;
    const size_t after = std::min<size_t>(encoding.offsets[i].end, span.end);
    const std::string_view rest = whole.substr(after, span.end - after);
    if (Visible(rest).empty()) tokens.last = i + 1;
    break;
  }
  return tokens;
}

}  // namespace

absl::StatusOr<ChatTokens> ModelText::EncodeChat(std::string_view messages_json,
                                                 const ChatOptions& options) const {
  if (!chat_template_) return absl::FailedPreconditionError("the model has no chat template");
  LEMO_ASSIGN_OR_RETURN(const Json messages, ParseMessages(messages_json));
  if (!options.weights.empty() && options.weights.size() != messages.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.weights.size(), " weights for ", messages.size(), " messages"));
  }
  const RenderOptions render = {.tools_json = options.tools_json,
                                .bos_token = bos_token_,
                                .eos_token = eos_token_,
                                .now_s = options.now_s};
  LEMO_ASSIGN_OR_RETURN(const std::string whole, chat_template_->Render(messages_json, render));
  LEMO_ASSIGN_OR_RETURN(Encoding encoding, tokenizer_.Encode(whole, false));

  ChatTokens tokens;
  tokens.trained.assign(encoding.ids.size(), options.train_all ? 1 : 0);
  const TurnFinder finder(*chat_template_, render, messages_json, messages, whole,
                          options.train_header);
  size_t from = 0;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (messages[i]["role"] != "assistant") continue;
    const bool trained = options.weights.empty() || options.weights[i] != 0;
    if (trained == options.train_all) continue;
    LEMO_ASSIGN_OR_RETURN(const Span span, finder.Find(i, from));
    from = span.end;
    const TokenSpan range = TokensOf(span, whole, encoding, tokenizer_);
    std::fill(tokens.trained.begin() + range.first, tokens.trained.begin() + range.last,
              trained ? 1 : 0);
  }
  tokens.ids = std::move(encoding.ids);
  return tokens;
}

}  // namespace lemo::text
