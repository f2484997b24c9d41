// Model families: how a config.json becomes a DecoderConfig, and which tensors the weights must
// hold.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "worker/train/model/family/decoder_config.h"

namespace lemo::train {

// One tensor of the weights: Hugging Face's name and shape.
struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;
};

// A family is one file that registers one of these; see llama.cc.
struct ModelFamily {
  std::string name;                        // `llama`
  std::vector<std::string> architectures;  // as in config.json
  // Fills what differs from the common keys. InvalidArgument lists every fault with its key.
  std::function<absl::StatusOr<DecoderConfig>(const nlohmann::json&)> parse;
};

// All families, ordered by name.
const std::vector<ModelFamily>& ModelFamilies();

// Reads and checks `<model_dir>/config.json`. Unknown architecture: InvalidArgument that lists the
// known ones.
absl::StatusOr<DecoderConfig> LoadDecoderConfig(const std::filesystem::path& model_dir);
absl::StatusOr<DecoderConfig> ParseDecoderConfig(const nlohmann::json& config);

// Every tensor of the model in the order of a forward pass: embedding, layers, final norm, head
// (absent when tied). Names: `model.embed_tokens.weight`, `model.layers.0.input_layernorm.weight`,
// `model.layers.0.self_attn.{q,k,v,o}_proj.{weight,bias}`,
// `model.layers.0.self_attn.{q,k}_norm.weight`, `model.layers.0.post_attention_layernorm.weight`,
// `model.layers.0.mlp.{gate,up,down}_proj.weight`, `model.norm.weight`, `lm_head.weight`.
std::vector<TensorSpec> ExpectedTensors(const DecoderConfig& config);

}  // namespace lemo::train
