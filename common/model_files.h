// Which files of a Hugging Face model directory belong to the model.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace lemo {

// What a run reads or copies into its result: config, tokenizer, chat templates, generation
// defaults, weights and their index. Paths relative to `directory`, sorted; empty when there is no
// such file. Links are followed to files only, as caches of models are made of them.
absl::StatusOr<std::vector<std::string>> ListModelFiles(const std::filesystem::path& directory);

// What tells a model's weights from others, whatever lies beside them: a digest over config.json,
// the index and the weight files among `files`, which are names within the directory and the
// SHA-256 of each. Empty when none of them has weights, or one of these no checksum.
std::string WeightsDigest(std::vector<std::pair<std::string, std::string>> files);
// The same of a directory, whose files are read for it.
absl::StatusOr<std::string> WeightsDigestOf(const std::filesystem::path& directory);

}  // namespace lemo
