#include "text/model_text.h"

#include <initializer_list>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"

namespace lemo::text {
namespace {

using nlohmann::json;

// The object in a file, or an empty one when there is no such file.
absl::StatusOr<json> ReadJsonObject(const std::filesystem::path& path) {
  absl::StatusOr<std::string> text = ReadFile(path);
  if (absl::IsNotFound(text.status())) return json::object();
  LEMO_RETURN_IF_ERROR(text.status());
  try {
    json value = json::parse(*text);
    if (value.is_object()) return value;
  } catch (const json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(path.string(), ": ", error.what()));
  }
  return absl::InvalidArgumentError(absl::StrCat(path.string(), ": not a JSON object"));
}

// The text of a token field: a string, an object with "content", or nothing.
std::string TokenText(const json& object, const char* field) {
  const auto found = object.find(field);
  if (found == object.end()) return "";
  if (found->is_string()) return found->get<std::string>();
  if (found->is_object()) {
    const auto content = found->find("content");
    if (content != found->end() && content->is_string()) return content->get<std::string>();
  }
  return "";
}

// The id of a field that holds an id or a list of ids (the first one counts), or -1.
int32_t TokenId(const json& object, const char* field) {
  auto found = object.find(field);
  if (found == object.end()) return -1;
  const json& value = found->is_array() && !found->empty() ? found->front() : *found;
  if (!value.is_number_integer()) return -1;
  const int64_t id = value.get<int64_t>();
  return id >= 0 && id <= INT32_MAX ? static_cast<int32_t>(id) : -1;
}

struct SpecialToken {
  std::string text;
  int32_t id = -1;
};

// `by_text` in order of precedence, then `by_id`. A text that is no token of the vocabulary is only
// taken when nothing better is found: templates may still name it.
SpecialToken ResolveToken(const Tokenizer& tokenizer, const std::string& name,
                          std::initializer_list<const json*> by_text,
                          std::initializer_list<const json*> by_id) {
  SpecialToken unknown;
  for (const json* file : by_text) {
    const std::string text = TokenText(*file, name.c_str());
    if (text.empty()) continue;
    const int32_t id = tokenizer.TokenToId(text);
    if (id >= 0) return {text, id};
    if (unknown.text.empty()) unknown.text = text;
  }
  for (const json* file : by_id) {
    const int32_t id = TokenId(*file, (name + "_id").c_str());
    if (id < 0) continue;
    if (absl::StatusOr<std::string> text = tokenizer.IdToToken(id); text.ok()) return {*text, id};
  }
  return unknown;
}

// The template inside tokenizer_config.json: a string, or a list of {name, template} of which the
// one named "default" is taken. Empty when there is none.
absl::StatusOr<std::string> InlineTemplate(const json& tokenizer_config,
                                           const std::filesystem::path& path) {
  const auto found = tokenizer_config.find("chat_template");
  if (found == tokenizer_config.end() || found->is_null()) return "";
  if (found->is_string()) return found->get<std::string>();
  if (found->is_array()) {
    for (const json& entry : *found) {
      if (!entry.is_object() || TokenText(entry, "name") != "default") continue;
      const auto source = entry.find("template");
      if (source != entry.end() && source->is_string()) return source->get<std::string>();
    }
    return absl::InvalidArgumentError(
        absl::StrCat(path.string(), ": chat_template: no entry with the name \"default\""));
  }
  return absl::InvalidArgumentError(
      absl::StrCat(path.string(), ": chat_template: neither a string nor a list"));
}

absl::StatusOr<std::optional<ChatTemplate>> LoadTemplate(const std::filesystem::path& model_dir,
                                                         const json& tokenizer_config) {
  std::filesystem::path path = model_dir / "chat_template.jinja";
  absl::StatusOr<std::string> source = ReadFile(path);
  if (absl::IsNotFound(source.status())) {
    path = model_dir / "tokenizer_config.json";
    source = InlineTemplate(tokenizer_config, path);
    if (source.ok() && source->empty()) return std::nullopt;
  }
  LEMO_RETURN_IF_ERROR(source.status());
  absl::StatusOr<ChatTemplate> compiled = ChatTemplate::Compile(*std::move(source));
  if (!compiled.ok()) {
    return absl::Status(compiled.status().code(),
                        absl::StrCat(path.string(), ": ", compiled.status().message()));
  }
  return *std::move(compiled);
}

}  // namespace

absl::StatusOr<ModelText> ModelText::Load(const std::filesystem::path& model_dir) {
  const std::filesystem::path tokenizer_path = model_dir / "tokenizer.json";
  const std::filesystem::path config_path = model_dir / "tokenizer_config.json";
  ModelText text;
  LEMO_ASSIGN_OR_RETURN(const std::string tokenizer_json, ReadFile(tokenizer_path));
  LEMO_ASSIGN_OR_RETURN(text.tokenizer_, Tokenizer::Parse(tokenizer_json, tokenizer_path.string()));
  text.tokenizer_hash_ = Sha256Hex(tokenizer_json);

  LEMO_ASSIGN_OR_RETURN(const json tokenizer_config, ReadJsonObject(config_path));
  LEMO_ASSIGN_OR_RETURN(const json tokens_map,
                        ReadJsonObject(model_dir / "special_tokens_map.json"));
  LEMO_ASSIGN_OR_RETURN(const json generation,
                        ReadJsonObject(model_dir / "generation_config.json"));
  LEMO_ASSIGN_OR_RETURN(const json model_config, ReadJsonObject(model_dir / "config.json"));
  LEMO_ASSIGN_OR_RETURN(text.chat_template_, LoadTemplate(model_dir, tokenizer_config));

  const auto resolve = [&](const char* name) {
    return ResolveToken(text.tokenizer_, name, {&tokenizer_config, &tokens_map},
                        {&generation, &model_config});
  };
  SpecialToken bos = resolve("bos_token");
  SpecialToken eos = resolve("eos_token");
  text.bos_token_ = std::move(bos.text);
  text.bos_id_ = bos.id;
  text.eos_token_ = std::move(eos.text);
  text.eos_id_ = eos.id;

  LEMO_ASSIGN_OR_RETURN(const Encoding probe, text.tokenizer_.Encode("a", true));
  text.adds_bos_ = text.bos_id_ >= 0 && !probe.ids.empty() && probe.ids.front() == text.bos_id_;
  return text;
}

}  // namespace lemo::text
