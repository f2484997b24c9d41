// Models for tests: of any size, in another type than a CPU computes in.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>

namespace lemo::train {

// A Llama model in `directory`: the tokenizer and config of the test model (Workspace::Model) with
// `config` put over it, and weights drawn from a fixed seed, stored as bfloat16.
void WriteBfloat16Model(const std::filesystem::path& directory, const nlohmann::json& config);

}  // namespace lemo::train
