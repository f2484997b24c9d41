// Which files of a Hugging Face model directory belong to the model.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace lemo {

// What a run reads or copies into its result: config, tokenizer, chat templates, generation
// defaults, weights and their index. Paths relative to `directory`, sorted; empty when there is no
// such file. Links are followed to files only, as caches of models are made of them.
absl::StatusOr<std::vector<std::string>> ListModelFiles(const std::filesystem::path& directory);

}  // namespace lemo
