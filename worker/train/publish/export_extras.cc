#include "worker/train/publish/export_extras.h"

#include <algorithm>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "worker/train/publish/json_file.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTemplateFile = "chat_template.jinja";
constexpr const char* kTokenizerConfig = "tokenizer_config.json";
constexpr const char* kGenerationConfig = "generation_config.json";
constexpr const char* kNamedTemplates = "additional_chat_templates";

// Copied as they are.
constexpr const char* kCopiedFiles[] = {
    "tokenizer.json",    "special_tokens_map.json",
    "added_tokens.json", "tokenizer.model",
    "vocab.json",        "merges.txt",
};

bool IsFile(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

absl::Status CopyIfPresent(const fs::path& from, const fs::path& to) {
  if (!IsFile(from)) return absl::OkStatus();
  LEMO_ASSIGN_OR_RETURN(const std::string text, ReadFile(from));
  return WriteFileAtomic(to, text);
}

absl::Status CopyNamedTemplates(const fs::path& from, const fs::path& to) {
  std::error_code error;
  if (!fs::is_directory(from, error)) return absl::OkStatus();
  LEMO_RETURN_IF_ERROR(MakeDirectories(to));
  fs::directory_iterator entry(from, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    if (entry->path().extension() != ".jinja") continue;
    LEMO_RETURN_IF_ERROR(CopyIfPresent(entry->path(), to / entry->path().filename()));
  }
  if (error) return ErrnoStatus(error.value(), "list", from);
  return absl::OkStatus();
}

// The member `chat_template` is one template, or a list of {"name", "template"}: then the one that
// readers take is called "default". Null when there is none.
OrderedJson* InlineTemplate(OrderedJson& config) {
  const auto found = config.find("chat_template");
  if (found == config.end()) return nullptr;
  if (found->is_string()) return &*found;
  if (!found->is_array()) return nullptr;
  for (OrderedJson& entry : *found) {
    if (!entry.is_object() || entry.value("name", OrderedJson()) != "default") continue;
    if (const auto text = entry.find("template"); text != entry.end() && text->is_string()) {
      return &*text;
    }
  }
  return nullptr;
}

void SetInlineTemplate(OrderedJson& config, const std::string& source) {
  if (OrderedJson* inline_template = InlineTemplate(config)) {
    *inline_template = source;
  } else if (const auto found = config.find("chat_template");
             found != config.end() && found->is_array()) {
    found->push_back(OrderedJson{{"name", "default"}, {"template", source}});
  } else {
    config["chat_template"] = source;
  }
}

absl::Status WriteTokenizerConfig(const ExportExtras& extras, const fs::path& dir) {
  const fs::path config_path = extras.model_dir / kTokenizerConfig;
  const fs::path template_path = extras.model_dir / kTemplateFile;
  std::optional<OrderedJson> config;
  std::string config_text;
  if (IsFile(config_path)) {
    LEMO_ASSIGN_OR_RETURN(config_text, ReadFile(config_path));
    LEMO_ASSIGN_OR_RETURN(config, ParseJsonObject(config_text, config_path));
  }
  OrderedJson* const inline_template = config.has_value() ? InlineTemplate(*config) : nullptr;
  std::optional<std::string> source = extras.chat_template;
  if (!source.has_value() && IsFile(template_path)) {
    LEMO_ASSIGN_OR_RETURN(source, ReadFile(template_path));
  } else if (!source.has_value() && inline_template != nullptr) {
    source = inline_template->get<std::string>();
  }
  if (source.has_value()) {
    LEMO_RETURN_IF_ERROR(WriteFileAtomic(dir / kTemplateFile, *source));
  }
  if (!config.has_value()) return absl::OkStatus();
  if (source.has_value() &&
      (inline_template == nullptr || inline_template->get<std::string>() != *source)) {
    SetInlineTemplate(*config, *source);
    config_text = JsonText(*config);
  }
  return WriteFileAtomic(dir / kTokenizerConfig, config_text);
}

absl::Status WriteGenerationConfig(const ExportExtras& extras, const fs::path& dir) {
  const fs::path from = extras.model_dir / kGenerationConfig;
  if (!extras.end_token_id.has_value()) return CopyIfPresent(from, dir / kGenerationConfig);
  OrderedJson config = OrderedJson::object();
  if (IsFile(from)) {
    LEMO_ASSIGN_OR_RETURN(config, ReadJsonObject(from));
  }
  const OrderedJson id = *extras.end_token_id;
  const auto found = config.find("eos_token_id");
  if (found == config.end() || found->is_null()) {
    config["eos_token_id"] = id;
  } else if (found->is_array()) {
    if (std::find(found->begin(), found->end(), id) == found->end()) found->push_back(id);
  } else if (*found != id) {
    *found = OrderedJson::array({OrderedJson(*found), id});
  }
  return WriteJson(dir / kGenerationConfig, config);
}

// Text inside a cell of a Markdown table.
std::string Cell(const std::string& text) {
  return absl::StrReplaceAll(text, {{"|", "\\|"}, {"\n", " "}, {"\r", " "}});
}

}  // namespace

absl::Status WriteTextFiles(const ExportExtras& extras, const fs::path& dir) {
  for (const char* name : kCopiedFiles) {
    LEMO_RETURN_IF_ERROR(CopyIfPresent(extras.model_dir / name, dir / name));
  }
  LEMO_RETURN_IF_ERROR(
      CopyNamedTemplates(extras.model_dir / kNamedTemplates, dir / kNamedTemplates));
  LEMO_RETURN_IF_ERROR(WriteTokenizerConfig(extras, dir));
  return WriteGenerationConfig(extras, dir);
}

absl::Status WriteRunFile(const ExportExtras& extras, const fs::path& dir) {
  OrderedJson json = {
      {"format", "lemo.run"}, {"version", 1}, {"lemo_version", extras.lemo_version}};
  json["chat_template_sha256"] = extras.chat_template_hash.empty()
                                     ? OrderedJson(nullptr)
                                     : OrderedJson(extras.chat_template_hash);
  json["spec"] = OrderedJson::object();
  if (!extras.run_spec_json.empty()) {
    LEMO_ASSIGN_OR_RETURN(json["spec"],
                          ParseJsonObject(extras.run_spec_json, "the effective run spec"));
  }
  return WriteJson(dir / "lemo_run.json", json);
}

absl::Status WriteModelCard(const ModelCard& card, const ExportExtras& extras,
                            const fs::path& dir) {
  std::string text =
      absl::StrCat("---\nbase_model: ", QuotedLiteral(card.base_model),
                   "\nlibrary_name: ", card.library, "\npipeline_tag: text-generation\ntags:\n");
  for (const std::string& tag : card.tags) absl::StrAppend(&text, "- ", tag, "\n");
  absl::StrAppend(&text, "---\n\n# ", card.title, "\n\nFine-tuned from `", card.base_model,
                  "` with LeMo", extras.lemo_version.empty() ? "" : " ", extras.lemo_version,
                  ". `lemo_run.json` holds the whole run spec.\n\n## Load\n\n```python\n",
                  card.usage, "```\n");
  if (!extras.summary.empty()) {
    absl::StrAppend(&text, "\n## Training\n\n| | |\n| --- | --- |\n");
    for (const auto& [name, value] : extras.summary) {
      absl::StrAppend(&text, "| ", Cell(name), " | ", Cell(value), " |\n");
    }
  }
  return WriteFileAtomic(dir / "README.md", text);
}

std::string QuotedLiteral(const std::string& text) {
  return OrderedJson(text).dump(-1, ' ', /*ensure_ascii=*/false,
                                OrderedJson::error_handler_t::replace);
}

}  // namespace lemo::train
