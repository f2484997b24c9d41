// Qwen 2 and 2.5: llama with biases on q, k and v, and windows in the later layers. Defaults as in
// transformers' Qwen2Config.
#include "common/violations.h"
#include "worker/train/model/family/common_keys.h"
#include "worker/train/model/family/config_reader.h"
#include "worker/train/model/family/family.h"

namespace lemo::train {
namespace {

absl::StatusOr<DecoderConfig> Parse(const nlohmann::json& json) {
  Violations violations;
  const ConfigReader reader(json, &violations);
  DecoderConfig config =
      ReadCommonKeys(reader, {.max_positions = 32768, .kv_heads = 32}, &violations);
  config.qkv_bias = true;
  ReadLayerWindows(reader, &config);
  if (!violations.empty()) return violations.ToStatus();
  return config;
}

}  // namespace

ModelFamily Qwen2Family() {
  return {.name = "qwen2", .architectures = {"Qwen2ForCausalLM"}, .parse = Parse};
}

}  // namespace lemo::train
