#include "common/model_files.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "absl/strings/match.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace lemo {
namespace {

namespace fs = std::filesystem;

constexpr std::array<std::string_view, 9> kNames = {
    "added_tokens.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
};
constexpr char kNamedTemplates[] = "additional_chat_templates";

bool IsNamedTemplate(const std::string& name) { return absl::EndsWith(name, ".jinja"); }

bool BelongsToModel(const std::string& name) {
  return std::find(kNames.begin(), kNames.end(), name) != kNames.end() || IsNamedTemplate(name) ||
         absl::EndsWith(name, ".safetensors") || absl::EndsWith(name, ".safetensors.index.json");
}

absl::Status AddFiles(const fs::path& directory, const std::string& prefix,
                      bool (*belongs)(const std::string&), std::vector<std::string>* paths) {
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code ignored;
    const std::string name = entry->path().filename().string();
    if (belongs(name) && entry->is_regular_file(ignored)) paths->push_back(prefix + name);
  }
  return error ? ErrnoStatus(error.value(), "list", directory) : absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ListModelFiles(const fs::path& directory) {
  std::vector<std::string> paths;
  LEMO_RETURN_IF_ERROR(AddFiles(directory, "", &BelongsToModel, &paths));
  const fs::path templates = directory / kNamedTemplates;
  std::error_code ignored;
  if (fs::is_directory(templates, ignored)) {
    LEMO_RETURN_IF_ERROR(
        AddFiles(templates, std::string(kNamedTemplates) + "/", &IsNamedTemplate, &paths));
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace lemo
