// Mistral: llama with one sliding window for all layers. Defaults as in transformers'
// MistralConfig.
#include <algorithm>

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
      ReadCommonKeys(reader, {.max_positions = 131072, .kv_heads = 8}, &violations);
  // Absent means 4096, null means none.
  const int64_t window =
      reader.IsNull("sliding_window") ? 0 : reader.Count("sliding_window", 4096, INT32_MAX);
  std::fill(config.sliding_window.begin(), config.sliding_window.end(), window);
  if (const nlohmann::json* types = reader.Find("layer_types");
      types != nullptr && !types->is_null()) {
    reader.Fault("layer_types", "windows that differ between layers are not part of this family");
  }
  if (!violations.empty()) return violations.ToStatus();
  return config;
}

}  // namespace

ModelFamily MistralFamily() {
  return {.name = "mistral", .architectures = {"MistralForCausalLM"}, .parse = Parse};
}

}  // namespace lemo::train
