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

// What Hugging Face calls the modules of a model; a tensor is `<module>.weight` or `<module>.bias`.
// Those of a layer follow `layers` and its number, `model.layers.0.self_attn.q_proj`.
struct ModuleNames {
  const char* embedding = "model.embed_tokens";
  const char* positions = "";    // the learned table
  const char* project_in = "";   // from the embedding's width to the stream's
  const char* project_out = "";  // and back, before the head
  const char* layers = "model.layers.";
  const char* attention_norm = "input_layernorm";
  const char* q = "self_attn.q_proj";
  const char* k = "self_attn.k_proj";
  const char* v = "self_attn.v_proj";
  const char* q_norm = "self_attn.q_norm";
  const char* k_norm = "self_attn.k_norm";
  const char* o = "self_attn.o_proj";
  const char* mlp_norm = "post_attention_layernorm";
  const char* gate = "mlp.gate_proj";
  const char* up = "mlp.up_proj";
  const char* down = "mlp.down_proj";
  const char* final_norm = "model.norm";
  const char* head = "lm_head";
};
const ModuleNames& NamesOf(const DecoderConfig& config);

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
// (absent when tied), by the names of NamesOf.
std::vector<TensorSpec> ExpectedTensors(const DecoderConfig& config);

// The linear modules of all layers, which an adapter may target: `model.layers.0.self_attn.q_proj`.
std::vector<std::string> LinearModules(const DecoderConfig& config);

}  // namespace lemo::train
