#include "worker/train/model/weight_files.h"

#include <algorithm>
#include <set>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "common/violations.h"
#include "nlohmann/json.hpp"

namespace lemo::train {
namespace {

constexpr char kSingle[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";
constexpr int64_t kIndexBytesMax = 64 << 20;

bool Exists(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

std::string Shown(const std::string& text) {
  return absl::StrCat("\"", absl::CHexEscape(text.substr(0, 160)), "\"");
}

absl::Status NoWeights(const std::filesystem::path& model_dir) {
  std::vector<std::string> pickles;
  std::vector<std::string> others;
  std::error_code error;
  for (std::filesystem::directory_iterator at(model_dir, error), end; !error && at != end;
       at.increment(error)) {
    const std::string name = at->path().filename().string();
    for (const char* suffix : {".bin", ".pt", ".pth", ".ckpt"}) {
      if (absl::EndsWith(name, suffix)) pickles.push_back(name);
    }
    for (const char* suffix : {".safetensors", ".gguf"}) {
      if (absl::EndsWith(name, suffix)) others.push_back(name);
    }
  }
  std::string message =
      absl::StrCat("no weights in ", model_dir.string(), ": neither ", kSingle, " nor ", kIndex);
  const auto list = [](std::vector<std::string>& names) {
    std::sort(names.begin(), names.end());
    if (names.size() > 5) names.resize(5);
    return absl::CHexEscape(absl::StrJoin(names, ", "));
  };
  if (!pickles.empty()) {
    absl::StrAppend(&message, "; pickled weights (", list(pickles),
                    ") can run code and are never read: save the model as safetensors");
  }
  if (!others.empty()) absl::StrAppend(&message, "; found ", list(others), " instead");
  return absl::NotFoundError(message);
}

absl::StatusOr<WeightFiles> ReadIndex(const std::filesystem::path& model_dir) {
  const std::filesystem::path path = model_dir / kIndex;
  const auto fault = [&path](const std::string& reason) {
    return absl::InvalidArgumentError(absl::StrCat(path.string(), ": ", reason));
  };
  WeightFiles found;
  LEMO_ASSIGN_OR_RETURN(found.index, ReadFile(path, kIndexBytesMax));
  nlohmann::json json;
  try {
    json = nlohmann::json::parse(found.index);
  } catch (const nlohmann::json::exception& exception) {
    return fault(
        absl::StrCat("not JSON: ", absl::CHexEscape(std::string(exception.what()).substr(0, 300))));
  }
  const auto map = json.is_object() ? json.find("weight_map") : json.end();
  if (map == json.end() || !map->is_object() || map->empty()) {
    return fault("weight_map must be an object that gives every tensor's file");
  }
  std::set<std::string> files;
  Violations violations;
  for (const auto& [tensor, value] : map->items()) {
    const std::string file = value.is_string() ? value.get<std::string>() : "";
    const bool plain = !file.empty() && file.find('/') == std::string::npos &&
                       file.find('\0') == std::string::npos && absl::EndsWith(file, ".safetensors");
    if (!plain) {
      violations.Add(
          {.reason = absl::StrCat("weight_map gives ", Shown(file), " for ", Shown(tensor),
                                  ", which is not a .safetensors file name"),
           .file = path.string()});
      continue;
    }
    found.file_of_tensor[tensor] = file;
    files.insert(file);
  }
  for (const std::string& file : files) {
    if (!Exists(model_dir / file)) {
      violations.Add({.reason = "does not exist, but the index names it",
                      .file = (model_dir / absl::CHexEscape(file)).string()});
    }
  }
  LEMO_RETURN_IF_ERROR(violations.ToStatus());
  found.files.assign(files.begin(), files.end());
  return found;
}

}  // namespace

absl::StatusOr<WeightFiles> FindWeightFiles(const std::filesystem::path& model_dir) {
  if (Exists(model_dir / kSingle)) return WeightFiles{.files = {std::string(kSingle)}};
  if (Exists(model_dir / kIndex)) return ReadIndex(model_dir);
  return NoWeights(model_dir);
}

}  // namespace lemo::train
