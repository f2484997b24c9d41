#include "worker/train/model/family/family.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "worker/train/model/family/config_reader.h"

namespace lemo::train {

// One file a family, and one entry in each of these two lists. Static initialisers would do without
// the lists, but a static library drops the object files that nothing names.
ModelFamily LlamaFamily();
ModelFamily MistralFamily();
ModelFamily Qwen2Family();
ModelFamily Qwen3Family();

const std::vector<ModelFamily>& ModelFamilies() {
  static const auto* const kFamilies = [] {
    auto* families =
        new std::vector<ModelFamily>{LlamaFamily(), MistralFamily(), Qwen2Family(), Qwen3Family()};
    std::sort(families->begin(), families->end(),
              [](const ModelFamily& a, const ModelFamily& b) { return a.name < b.name; });
    return families;
  }();
  return *kFamilies;
}

namespace {

// A config.json has a few kilobytes; remote-code models may carry more.
constexpr int64_t kConfigBytesMax = 4 << 20;

struct Match {
  const ModelFamily* family = nullptr;
  std::string architecture;
};

std::string KnownArchitectures() {
  return absl::StrJoin(ModelFamilies(), ", ", [](std::string* out, const ModelFamily& family) {
    absl::StrAppend(out, absl::StrJoin(family.architectures, ", "));
  });
}

// By `architectures`; a config without them is known by its `model_type`. Where both are there they
// must agree, since other programs load such a directory by `model_type` alone.
absl::StatusOr<Match> FindFamily(const nlohmann::json& config) {
  const auto listed = config.find("architectures");
  const auto type = config.find("model_type");
  const bool has_list = listed != config.end() && listed->is_array() && !listed->empty();
  Match match;
  std::string seen;
  if (has_list) {
    for (const nlohmann::json& entry : *listed) {
      absl::StrAppend(&seen, seen.empty() ? "" : ", ", ConfigReader::Describe(entry));
      if (seen.size() > 400) break;
      if (!entry.is_string()) continue;
      const auto name = entry.get<std::string>();
      for (const ModelFamily& family : ModelFamilies()) {
        const auto& known = family.architectures;
        if (std::find(known.begin(), known.end(), name) == known.end()) continue;
        if (match.family == nullptr) match = {.family = &family, .architecture = name};
      }
    }
    seen = absl::StrCat("architectures: ", seen, " is not supported");
  } else if (type != config.end()) {
    seen = absl::StrCat("model_type: ", ConfigReader::Describe(*type), " is not supported");
    for (const ModelFamily& family : ModelFamilies()) {
      if (*type == family.name) match = {&family, family.architectures.front()};
    }
  } else {
    seen = "architectures: is missing";
  }
  if (match.family == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(seen, "; known: ", KnownArchitectures()));
  }
  if (type != config.end() && !type->is_null() && *type != match.family->name) {
    return absl::InvalidArgumentError(absl::StrCat("model_type: ", ConfigReader::Describe(*type),
                                                   " does not go with the architecture ",
                                                   match.architecture));
  }
  return match;
}

}  // namespace

absl::StatusOr<DecoderConfig> ParseDecoderConfig(const nlohmann::json& config) {
  if (!config.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("must be an object, found ", ConfigReader::Describe(config)));
  }
  LEMO_ASSIGN_OR_RETURN(const Match match, FindFamily(config));
  LEMO_ASSIGN_OR_RETURN(DecoderConfig parsed, match.family->parse(config));
  parsed.family = match.family->name;
  parsed.architecture = match.architecture;
  return parsed;
}

absl::StatusOr<DecoderConfig> LoadDecoderConfig(const std::filesystem::path& model_dir) {
  std::error_code error;
  if (!std::filesystem::is_directory(model_dir, error)) {
    return absl::NotFoundError(absl::StrCat(
        "model directory ", model_dir.string(),
        std::filesystem::exists(model_dir, error) ? " is not a directory" : " does not exist"));
  }
  const std::filesystem::path path = model_dir / "config.json";
  LEMO_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kConfigBytesMax));
  nlohmann::json json;
  try {
    json = nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& exception) {
    return absl::InvalidArgumentError(absl::StrCat(
        path.string(),
        ": not JSON: ", absl::CHexEscape(std::string(exception.what()).substr(0, 300))));
  }
  absl::StatusOr<DecoderConfig> config = ParseDecoderConfig(json);
  if (!config.ok()) {
    return absl::Status(config.status().code(),
                        absl::StrCat(path.string(), ": ", config.status().message()));
  }
  return config;
}

std::vector<TensorSpec> ExpectedTensors(const DecoderConfig& config) {
  const int64_t query = config.heads * config.head_dim;
  const int64_t key = config.kv_heads * config.head_dim;
  std::vector<TensorSpec> tensors;
  const auto linear = [&tensors](const std::string& name, int64_t out, int64_t in, bool bias) {
    tensors.push_back({name + ".weight", {out, in}});
    if (bias) tensors.push_back({name + ".bias", {out}});
  };
  tensors.push_back({"model.embed_tokens.weight", {config.vocabulary, config.hidden}});
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    const std::string attention = prefix + "self_attn.";
    tensors.push_back({prefix + "input_layernorm.weight", {config.hidden}});
    linear(attention + "q_proj", query, config.hidden, config.qkv_bias);
    linear(attention + "k_proj", key, config.hidden, config.qkv_bias);
    linear(attention + "v_proj", key, config.hidden, config.qkv_bias);
    if (config.qk_norm) {
      tensors.push_back({attention + "q_norm.weight", {config.head_dim}});
      tensors.push_back({attention + "k_norm.weight", {config.head_dim}});
    }
    linear(attention + "o_proj", config.hidden, query, config.o_bias);
    tensors.push_back({prefix + "post_attention_layernorm.weight", {config.hidden}});
    linear(prefix + "mlp.gate_proj", config.intermediate, config.hidden, config.mlp_bias);
    linear(prefix + "mlp.up_proj", config.intermediate, config.hidden, config.mlp_bias);
    linear(prefix + "mlp.down_proj", config.hidden, config.intermediate, config.mlp_bias);
  }
  tensors.push_back({"model.norm.weight", {config.hidden}});
  if (!config.tied_embeddings) {
    tensors.push_back({"lm_head.weight", {config.vocabulary, config.hidden}});
  }
  return tensors;
}

}  // namespace lemo::train
