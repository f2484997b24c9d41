#include "worker/train/model/family/common_keys.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace lemo::train {
namespace {

constexpr int64_t kHeadDimMax = 1 << 14;
constexpr double kNumberMax = 1e15;

// transformers <5 has rope_theta and rope_scaling at the top; 5.x has all of it in rope_parameters.
// Both may be present; a rope_scaling that is not empty then wins, as it does in transformers.
void ReadRope(const ConfigReader& top, Violations* violations, DecoderConfig* config) {
  RopeConfig& rope = config->rope;
  const nlohmann::json* block = nullptr;
  const char* name = nullptr;
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const nlohmann::json* value = top.Find(key);
    if (value == nullptr || value->is_null()) continue;
    if (!value->is_object()) {
      top.Fault(key,
                absl::StrCat("must be an object or null, found ", ConfigReader::Describe(*value)));
      return;
    }
    if (block == nullptr && !value->empty()) {
      block = value;
      name = key;
    }
  }
  constexpr double kThetaMin = 1.0 + 1e-6;
  rope.theta = top.Number("rope_theta", 10000.0, kThetaMin, kNumberMax);
  if (top.Number("partial_rotary_factor", 1.0, 0.0, kNumberMax) != 1.0) {
    top.Fault("partial_rotary_factor", "only 1 (rope over the whole head) is supported");
  }
  if (block == nullptr) return;

  for (const auto& [key, value] : block->items()) {
    if (value.is_object()) {
      top.Fault(name, absl::StrCat("has an object at \"", key.substr(0, 80),
                                   "\": rope that differs between layers is not supported"));
      return;
    }
  }
  const ConfigReader reader(*block, violations, absl::StrCat(name, "."));
  rope.theta = reader.Number("rope_theta", rope.theta, kThetaMin, kNumberMax);
  if (reader.Number("partial_rotary_factor", 1.0, 0.0, kNumberMax) != 1.0) {
    reader.Fault("partial_rotary_factor", "only 1 (rope over the whole head) is supported");
  }
  // `type` is the spelling of older files; `rope_type` wins.
  const char* type_key = reader.Find("rope_type") != nullptr ? "rope_type" : "type";
  const std::string type = reader.String(type_key, "default");
  const auto required = [&reader](const char* key, double min) {
    if (reader.Find(key) == nullptr || reader.IsNull(key)) reader.Fault(key, "is missing");
    return reader.Number(key, 1.0, min, kNumberMax);
  };
  if (type == "default") return;
  if (type == "linear") {
    rope.scaling = RopeConfig::Scaling::kLinear;
    rope.factor = required("factor", 1.0);
    return;
  }
  if (type == "dynamic") {
    rope.scaling = RopeConfig::Scaling::kDynamic;
    rope.factor = required("factor", 1.0);
    // transformers measures a document against max_position_embeddings and ignores
    // original_max_position_embeddings.
    rope.original_max_positions = config->max_positions;
    if (config->head_dim == 2) reader.Fault(type_key, "dynamic needs a head_dim above 2");
    return;
  }
  if (type != "llama3" && type != "yarn") {
    reader.Fault(
        type_key,
        absl::StrCat("\"", type.substr(0, 80),
                     "\" is not supported; known: default, linear, dynamic, llama3, yarn"));
    return;
  }
  rope.original_max_positions =
      reader.Count("original_max_position_embeddings", config->max_positions, kPositionsMax);
  // A copy outside the block overrides the one inside, as in transformers.
  rope.original_max_positions =
      top.Count("original_max_position_embeddings", rope.original_max_positions, kPositionsMax);
  if (type == "llama3") {
    rope.scaling = RopeConfig::Scaling::kLlama3;
    rope.factor = required("factor", 1.0);
    rope.low_freq_factor = required("low_freq_factor", 1e-6);
    rope.high_freq_factor = required("high_freq_factor", 1e-6);
    if (reader.Find("high_freq_factor") != nullptr && reader.Find("low_freq_factor") != nullptr &&
        rope.high_freq_factor <= rope.low_freq_factor) {
      reader.Fault("high_freq_factor",
                   absl::StrCat("must be above low_freq_factor, found ", rope.high_freq_factor,
                                " and ", rope.low_freq_factor));
    }
    return;
  }
  rope.scaling = RopeConfig::Scaling::kYarn;
  if (reader.IsNull("factor") && rope.original_max_positions > 0) {
    rope.factor = static_cast<double>(config->max_positions) /
                  static_cast<double>(rope.original_max_positions);
  } else {
    rope.factor = required("factor", 1.0);
  }
  // transformers reads 0 as "not given" for the betas and mscales.
  const auto zero_is_absent = [&reader](const char* key) {
    std::optional<double> value = reader.OptionalNumber(key, 0.0, kNumberMax);
    return value == 0.0 ? std::nullopt : value;
  };
  rope.beta_fast = zero_is_absent("beta_fast").value_or(32.0);
  rope.beta_slow = zero_is_absent("beta_slow").value_or(1.0);
  rope.mscale = zero_is_absent("mscale");
  rope.mscale_all_dim = zero_is_absent("mscale_all_dim");
  rope.attention_factor = reader.OptionalNumber("attention_factor", 1e-9, kNumberMax);
  rope.truncate = reader.Bool("truncate", true);
}

}  // namespace

DecoderConfig ReadCommonKeys(const ConfigReader& reader, const FamilyDefaults& defaults,
                             Violations* violations) {
  DecoderConfig config;
  config.hidden = reader.RequiredCount("hidden_size", kHiddenMax);
  config.layers = reader.RequiredCount("num_hidden_layers", kLayersMax);
  config.heads = reader.RequiredCount("num_attention_heads", kHeadsMax);
  config.intermediate = reader.RequiredCount("intermediate_size", kIntermediateMax);
  config.vocabulary = reader.RequiredCount("vocab_size", kVocabularyMax);
  config.max_positions =
      reader.Count("max_position_embeddings", defaults.max_positions, kPositionsMax);
  config.rms_norm_eps = reader.Number("rms_norm_eps", 1e-6, 0.0, 1.0);
  config.initializer_range = reader.Number("initializer_range", 0.02, 0.0, 1.0);
  config.tied_embeddings = reader.Bool("tie_word_embeddings", false);

  const bool kv_heads_given = reader.Find("num_key_value_heads") != nullptr;
  config.kv_heads = reader.Count(
      "num_key_value_heads",
      kv_heads_given ? config.heads : defaults.kv_heads.value_or(config.heads), kHeadsMax);
  if (config.heads > 0 && config.heads % config.kv_heads != 0) {
    reader.Fault("num_attention_heads",
                 absl::StrCat("must be a multiple of num_key_value_heads, found ", config.heads,
                              " and ", config.kv_heads));
  }

  if (defaults.head_dim.has_value() && reader.IsNull("head_dim")) {
    reader.Fault("head_dim", "must not be null in this family");
  }
  config.head_dim = reader.Count("head_dim", defaults.head_dim.value_or(0), kHeadDimMax);
  if (config.head_dim == 0) DivideHidden(reader, &config);
  if (config.head_dim % 2 != 0) {
    reader.Fault("head_dim", absl::StrCat("must be even for rope, found ", config.head_dim));
  }

  ReadRope(reader, violations, &config);

  if (const std::string act = reader.String("hidden_act", "silu"); act != "silu") {
    reader.Fault("hidden_act",
                 absl::StrCat("\"", act.substr(0, 80), "\" is not supported; known: silu"));
  }
  ReadTypeAndRefusals(reader, &config);
  config.sliding_window.assign(static_cast<size_t>(config.layers), 0);
  return config;
}

void DivideHidden(const ConfigReader& reader, DecoderConfig* config) {
  if (config->heads == 0 || config->hidden == 0) return;
  if (config->hidden % config->heads != 0) {
    reader.Fault(
        "hidden_size",
        absl::StrCat("must be a multiple of num_attention_heads where head_dim is not given, "
                     "found ",
                     config->hidden, " and ", config->heads));
  }
  config->head_dim = config->hidden / config->heads;
}

void ReadTypeAndRefusals(const ConfigReader& reader, DecoderConfig* config) {
  if (reader.Number("attention_dropout", 0.0, 0.0, 1.0) != 0.0) {
    reader.Fault("attention_dropout", "only 0 is supported");
  }
  if (const nlohmann::json* quantization = reader.Find("quantization_config");
      quantization != nullptr && !quantization->is_null()) {
    reader.Fault("quantization_config",
                 "quantized weights are not supported; use the model in F32, BF16 or F16");
  }
  const char* type_key =
      reader.Find("dtype") != nullptr && !reader.IsNull("dtype") ? "dtype" : "torch_dtype";
  const std::string type = reader.String(type_key, "float32");
  config->weights_type = std::string(absl::StripPrefix(type, "torch."));
}

void ReadLayerWindows(const ConfigReader& reader, DecoderConfig* config) {
  const bool used = reader.Bool("use_sliding_window", false);
  const int64_t given = reader.Count("sliding_window", 4096, kPositionsMax);
  const int64_t window = used && !reader.IsNull("sliding_window") ? given : 0;
  const int64_t first = reader.Count("max_window_layers", 28, kLayersMax, /*min=*/0);
  const nlohmann::json* types = reader.Find("layer_types");
  if (types == nullptr || types->is_null()) {
    for (int64_t layer = first; layer < config->layers; ++layer) {
      config->sliding_window[static_cast<size_t>(layer)] = window;
    }
    return;
  }
  if (!types->is_array()) {
    reader.Fault("layer_types",
                 absl::StrCat("must be a list or null, found ", ConfigReader::Describe(*types)));
    return;
  }
  if (static_cast<int64_t>(types->size()) != config->layers) {
    reader.Fault("layer_types", absl::StrCat("has ", types->size(), " entries for ", config->layers,
                                             " num_hidden_layers"));
    return;
  }
  for (size_t layer = 0; layer < types->size(); ++layer) {
    const nlohmann::json& type = (*types)[layer];
    if (type == "full_attention") continue;
    if (type != "sliding_attention") {
      reader.Fault("layer_types",
                   absl::StrCat("entry ", layer, " is ", ConfigReader::Describe(type),
                                "; known: full_attention, sliding_attention"));
      return;
    }
    if (window == 0) {
      reader.Fault(
          "layer_types",
          absl::StrCat("entry ", layer,
                       " is sliding_attention, but use_sliding_window or sliding_window is off"));
      return;
    }
    config->sliding_window[layer] = window;
  }
}

}  // namespace lemo::train
