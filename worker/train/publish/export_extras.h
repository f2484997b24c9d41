// What an exported directory holds besides tensors: the tokenizer, the chat template, the
// generation settings, a model card and the run it came from.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace lemo::train {

struct ExportExtras {
  // The base model's directory: tokenizer files and generation settings are copied from it, as far
  // as it has them.
  std::filesystem::path model_dir;
  // The chat template of the run and its SHA-256. Without one the base's own is written.
  std::optional<std::string> chat_template;
  std::string chat_template_hash;
  // The token that ended the trained turns; joins the end tokens of generation_config.json.
  std::optional<int32_t> end_token_id;
  // The effective spec of the run, as JSON text.
  std::string run_spec_json;
  std::string lemo_version;
  // Lines for the model card: {"Steps", "40"}, {"Evaluation loss", "2.31"}.
  std::vector<std::pair<std::string, std::string>> summary;
};

// Copies tokenizer.json, its config and vocabulary files, chat templates and
// generation_config.json. The chat template is written in both spellings that readers know,
// identically: chat_template.jinja and the member `chat_template` of tokenizer_config.json.
absl::Status WriteTextFiles(const ExportExtras& extras, const std::filesystem::path& dir);

// lemo_run.json: the effective spec, the template's hash, the program's version.
absl::Status WriteRunFile(const ExportExtras& extras, const std::filesystem::path& dir);

// README.md.
struct ModelCard {
  std::string title;       // "LoRA adapter for novelist-3m"
  std::string base_model;  // name or path
  std::string library;     // "peft", "transformers"
  std::vector<std::string> tags;
  std::string usage;  // Python that loads the directory
};
absl::Status WriteModelCard(const ModelCard& card, const ExportExtras& extras,
                            const std::filesystem::path& dir);

// `text` as a string literal that JSON, YAML and Python read alike.
std::string QuotedLiteral(const std::string& text);

}  // namespace lemo::train
