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
ModelFamily OptFamily();
ModelFamily Qwen2Family();
ModelFamily Qwen3Family();

const std::vector<ModelFamily>& ModelFamilies() {
  static const auto* const kFamilies = [] {
    auto* families = new std::vector<ModelFamily>{LlamaFamily(), MistralFamily(), OptFamily(),
                                                  Qwen2Family(), Qwen3Family()};
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

const ModuleNames& NamesOf(const DecoderConfig& config) {
  static const ModuleNames kLlama;
  static const ModuleNames kOpt{.embedding = "model.decoder.embed_tokens",
                                .positions = "model.decoder.embed_positions",
                                .project_in = "model.decoder.project_in",
                                .project_out = "model.decoder.project_out",
                                .layers = "model.decoder.layers.",
                                .attention_norm = "self_attn_layer_norm",
                                .o = "self_attn.out_proj",
                                .mlp_norm = "final_layer_norm",
                                .gate = "",
                                .up = "fc1",
                                .down = "fc2",
                                .final_norm = "model.decoder.final_layer_norm"};
  return config.family == "opt" ? kOpt : kLlama;
}

std::vector<TensorSpec> ExpectedTensors(const DecoderConfig& config) {
  const ModuleNames& names = NamesOf(config);
  const int64_t query = config.heads * config.head_dim;
  const int64_t key = config.kv_heads * config.head_dim;
  std::vector<TensorSpec> tensors;
  const auto linear = [&tensors](const std::string& name, int64_t out, int64_t in, bool bias) {
    tensors.push_back({name + ".weight", {out, in}});
    if (bias) tensors.push_back({name + ".bias", {out}});
  };
  const auto norm = [&](const std::string& name) {
    tensors.push_back({name + ".weight", {config.hidden}});
    if (config.norm == DecoderConfig::Norm::kLayer) {
      tensors.push_back({name + ".bias", {config.hidden}});
    }
  };
  linear(names.embedding, config.vocabulary, config.EmbeddingWidth(), false);
  if (config.projected_embedding()) {
    linear(names.project_in, config.hidden, config.embedding_width, false);
  }
  if (config.positions == DecoderConfig::Positions::kTable) {
    linear(names.positions, config.max_positions + config.position_offset, config.hidden, false);
  }
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const std::string prefix = absl::StrCat(names.layers, layer, ".");
    if (!config.post_norm) norm(prefix + names.attention_norm);
    linear(prefix + names.q, query, config.hidden, config.qkv_bias);
    linear(prefix + names.k, key, config.hidden, config.qkv_bias);
    linear(prefix + names.v, key, config.hidden, config.qkv_bias);
    if (config.qk_norm) {
      tensors.push_back({absl::StrCat(prefix, names.q_norm, ".weight"), {config.head_dim}});
      tensors.push_back({absl::StrCat(prefix, names.k_norm, ".weight"), {config.head_dim}});
    }
    linear(prefix + names.o, config.hidden, query, config.o_bias);
    norm(prefix + (config.post_norm ? names.attention_norm : names.mlp_norm));
    if (config.mlp == DecoderConfig::Mlp::kSwiGlu) {
      linear(prefix + names.gate, config.intermediate, config.hidden, config.mlp_bias);
    }
    linear(prefix + names.up, config.intermediate, config.hidden, config.mlp_bias);
    linear(prefix + names.down, config.hidden, config.intermediate, config.mlp_bias);
    if (config.post_norm) norm(prefix + names.mlp_norm);
  }
  if (config.final_norm) norm(names.final_norm);
  if (config.projected_embedding()) {
    linear(names.project_out, config.embedding_width, config.hidden, false);
  }
  if (!config.tied_embeddings) {
    linear(names.head, config.vocabulary, config.EmbeddingWidth(), false);
  }
  return tensors;
}

std::vector<std::string> LinearModules(const DecoderConfig& config) {
  const ModuleNames& names = NamesOf(config);
  std::vector<std::string> modules;
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    for (const char* name :
         {names.q, names.k, names.v, names.o, names.gate, names.up, names.down}) {
      if (*name != '\0') modules.push_back(absl::StrCat(names.layers, layer, ".", name));
    }
  }
  return modules;
}

}  // namespace lemo::train
