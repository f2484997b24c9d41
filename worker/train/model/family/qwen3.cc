// Qwen 3, dense: RMS norms on q and k, head_dim of its own. Defaults as in transformers'
// Qwen3Config.
#include "common/violations.h"
#include "worker/train/model/family/common_keys.h"
#include "worker/train/model/family/config_reader.h"
#include "worker/train/model/family/family.h"

namespace lemo::train {
namespace {

absl::StatusOr<DecoderConfig> Parse(const nlohmann::json& json) {
  Violations violations;
  const ConfigReader reader(json, &violations);
  DecoderConfig config = ReadCommonKeys(
      reader, {.max_positions = 32768, .kv_heads = 32, .head_dim = 128}, &violations);
  config.qkv_bias = config.o_bias = reader.Bool("attention_bias", false);
  config.qk_norm = true;
  ReadLayerWindows(reader, &config);
  if (!violations.empty()) return violations.ToStatus();
  return config;
}

}  // namespace

ModelFamily Qwen3Family() {
  return {.name = "qwen3", .architectures = {"Qwen3ForCausalLM"}, .parse = Parse};
}

}  // namespace lemo::train
