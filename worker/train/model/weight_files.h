// Which files of a model directory hold its weights.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace lemo::train {

struct WeightFiles {
  // Names inside the model directory, ordered; `model.safetensors` or shards.
  std::vector<std::string> files;
  // From the index: tensor -> file. Empty for a single file.
  std::map<std::string, std::string> file_of_tensor;
  // The index's bytes, "" for a single file.
  std::string index;
};

// As transformers: `model.safetensors` if present, else the index. Every listed file exists, has
// the suffix .safetensors, and lies directly in the directory. NotFound when there is neither: the
// message names pickled weights, which are never read, and other weight files that lie there.
absl::StatusOr<WeightFiles> FindWeightFiles(const std::filesystem::path& model_dir);

}  // namespace lemo::train
