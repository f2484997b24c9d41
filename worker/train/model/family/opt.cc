// OPT: learned positions added to the embedding, LayerNorm and biases everywhere, a ReLU MLP. The
// 350M model alone normalises after the residual additions, has no norm before the head, and keeps
// its embedding narrower than its stream. Defaults as in transformers' OPTConfig.
//
// `dropout`, 0.1 in the published configs, is what the models were pre-trained with. Fine-tuning
// runs without it, as a model in transformers' eval mode; an adapter has its own
// (tuner.lora.dropout).
#include "absl/strings/str_cat.h"
#include "common/violations.h"
#include "worker/train/model/family/common_keys.h"
#include "worker/train/model/family/config_reader.h"
#include "worker/train/model/family/family.h"

namespace lemo::train {
namespace {

absl::StatusOr<DecoderConfig> Parse(const nlohmann::json& json) {
  Violations violations;
  const ConfigReader reader(json, &violations);
  DecoderConfig config;
  config.hidden = reader.RequiredCount("hidden_size", kHiddenMax);
  config.layers = reader.RequiredCount("num_hidden_layers", kLayersMax);
  config.heads = reader.RequiredCount("num_attention_heads", kHeadsMax);
  config.kv_heads = config.heads;
  DivideHidden(reader, &config);
  config.intermediate = reader.RequiredCount("ffn_dim", kIntermediateMax);
  config.vocabulary = reader.RequiredCount("vocab_size", kVocabularyMax);
  config.embedding_width = reader.Count("word_embed_proj_dim", config.hidden, kHiddenMax);

  config.positions = DecoderConfig::Positions::kTable;
  config.max_positions = reader.Count("max_position_embeddings", 2048, kPositionsMax - 2);
  // fairseq counted positions from its padding index, 1, plus one.
  config.position_offset = 2;

  config.norm = DecoderConfig::Norm::kLayer;
  config.rms_norm_eps = 1e-5;  // torch.nn.LayerNorm's; no key of the file changes it
  config.post_norm = !reader.Bool("do_layer_norm_before", true);
  config.final_norm = !config.post_norm && !reader.Bool("_remove_final_layer_norm", false);
  if (!reader.Bool("layer_norm_elementwise_affine", true)) {
    reader.Fault("layer_norm_elementwise_affine", "only true is supported");
  }

  config.mlp = DecoderConfig::Mlp::kRelu;
  if (const std::string act = reader.String("activation_function", "relu"); act != "relu") {
    reader.Fault("activation_function",
                 absl::StrCat("\"", act.substr(0, 80), "\" is not supported; known: relu"));
  }
  config.qkv_bias = config.o_bias = config.mlp_bias = reader.Bool("enable_bias", true);
  if (reader.Number("layerdrop", 0.0, 0.0, 1.0) != 0.0) {
    reader.Fault("layerdrop", "only 0 is supported");
  }

  config.initializer_range = reader.Number("init_std", 0.02, 0.0, 1.0);
  config.tied_embeddings = reader.Bool("tie_word_embeddings", true);
  ReadTypeAndRefusals(reader, &config);
  config.sliding_window.assign(static_cast<size_t>(config.layers), 0);
  if (!violations.empty()) return violations.ToStatus();
  return config;
}

}  // namespace

ModelFamily OptFamily() {
  return {.name = "opt", .architectures = {"OPTForCausalLM"}, .parse = Parse};
}

}  // namespace lemo::train
