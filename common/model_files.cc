#include "common/model_files.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
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

bool DecidesWeights(const std::string& name) {
  return name == "config.json" || absl::EndsWith(name, ".safetensors") ||
         absl::EndsWith(name, ".safetensors.index.json");
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

std::string WeightsDigest(std::vector<std::pair<std::string, std::string>> files) {
  std::erase_if(files, [](const auto& file) { return !DecidesWeights(file.first); });
  const bool known = std::all_of(files.begin(), files.end(),
                                 [](const auto& file) { return !file.second.empty(); });
  const bool has_weights = std::any_of(files.begin(), files.end(), [](const auto& file) {
    return absl::EndsWith(file.first, ".safetensors");
  });
  if (!known || !has_weights) return "";
  std::sort(files.begin(), files.end());
  // A digest of digests: every part has one length, so parts cannot run into one another.
  std::string parts;
  for (const auto& [name, sha256] : files) absl::StrAppend(&parts, Sha256Hex(name), sha256);
  return Sha256Hex(parts);
}

absl::StatusOr<std::string> WeightsDigestOf(const fs::path& directory) {
  LEMO_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListModelFiles(directory));
  std::vector<std::pair<std::string, std::string>> files;
  for (const std::string& name : names) {
    if (!DecidesWeights(name)) continue;
    LEMO_ASSIGN_OR_RETURN(std::string sha256, Sha256HexOfFile(directory / name));
    files.emplace_back(name, std::move(sha256));
  }
  return WeightsDigest(std::move(files));
}

}  // namespace lemo
