// Llama 1 to 3.x and what shares its architecture. Defaults as in transformers' LlamaConfig.
#include "common/violations.h"
#include "worker/train/model/family/common_keys.h"
#include "worker/train/model/family/config_reader.h"
#include "worker/train/model/family/family.h"

namespace lemo::train {
namespace {

absl::StatusOr<DecoderConfig> Parse(const nlohmann::json& json) {
  Violations violations;
  const ConfigReader reader(json, &violations);
  DecoderConfig config = ReadCommonKeys(reader, {.max_positions = 2048}, &violations);
  config.qkv_bias = config.o_bias = reader.Bool("attention_bias", false);
  config.mlp_bias = reader.Bool("mlp_bias", false);
  if (!violations.empty()) return violations.ToStatus();
  return config;
}

}  // namespace

ModelFamily LlamaFamily() {
  return {.name = "llama", .architectures = {"LlamaForCausalLM"}, .parse = Parse};
}

}  // namespace lemo::train
