// The config.json keys that all families share. Absent keys take transformers' default for the
// family.
#pragma once

#include <cstdint>
#include <optional>

#include "worker/train/model/family/config_reader.h"
#include "worker/train/model/family/decoder_config.h"

namespace lemo::train {

// Far above every model there is, and low enough that no product of two or three overflows.
inline constexpr int64_t kHiddenMax = 1 << 20;
inline constexpr int64_t kLayersMax = 10'000;
inline constexpr int64_t kHeadsMax = 1 << 16;
inline constexpr int64_t kIntermediateMax = 1 << 24;
inline constexpr int64_t kVocabularyMax = 1 << 28;
inline constexpr int64_t kPositionsMax = (int64_t{1} << 31) - 1;

// What a family's configuration class in transformers assumes when a key is absent.
struct FamilyDefaults {
  int64_t max_positions = 0;
  // num_key_value_heads; nullopt for as many as there are query heads (which an explicit null also
  // means).
  std::optional<int64_t> kv_heads;
  // head_dim; nullopt for hidden / heads.
  std::optional<int64_t> head_dim;
};

// Sizes, rope, norms, tying, types. All windows are 0 and all biases false. Faults go to the
// reader's list; then the sizes are not to be used.
DecoderConfig ReadCommonKeys(const ConfigReader& reader, const FamilyDefaults& defaults,
                             Violations* violations);

// head_dim = hidden / heads, where a family has no key of its own for it; a fault when that is no
// whole number.
void DivideHidden(const ConfigReader& reader, DecoderConfig* config);

// `dtype`, or `torch_dtype` as older files spell it; quantized weights and dropped attention scores
// are refused.
void ReadTypeAndRefusals(const ConfigReader& reader, DecoderConfig* config);

// Qwen's windows: `use_sliding_window`, `sliding_window`, `max_window_layers`, `layer_types`.
void ReadLayerWindows(const ConfigReader& reader, DecoderConfig* config);

}  // namespace lemo::train
