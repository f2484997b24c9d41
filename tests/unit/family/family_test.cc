#include "worker/train/model/family/family.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "worker/train/model/family/run_length.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

json Config(const std::string& family) {
  const std::vector<std::pair<std::string, std::string>> architectures = {
      {"llama", "LlamaForCausalLM"},
      {"mistral", "MistralForCausalLM"},
      {"qwen2", "Qwen2ForCausalLM"},
      {"qwen3", "Qwen3ForCausalLM"}};
  json config = {{"model_type", family},     {"hidden_size", 64},        {"num_hidden_layers", 3},
                 {"num_attention_heads", 8}, {"num_key_value_heads", 2}, {"intermediate_size", 48},
                 {"vocab_size", 40}};
  for (const auto& [name, architecture] : architectures) {
    if (name == family) config["architectures"] = {architecture};
  }
  return config;
}

json With(const std::string& family, const json& changes) {
  json config = Config(family);
  config.update(changes);
  return config;
}

std::string Fault(const json& config) {
  const auto parsed = ParseDecoderConfig(config);
  if (parsed.ok()) return "was accepted";
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(parsed.status().message());
}

TEST(ModelFamilies, AreOrderedAndComplete) {
  std::vector<std::string> names;
  for (const ModelFamily& family : ModelFamilies()) {
    names.push_back(family.name);
    EXPECT_FALSE(family.architectures.empty());
    ASSERT_TRUE(family.parse);
  }
  EXPECT_THAT(names, ElementsAre("llama", "mistral", "opt", "qwen2", "qwen3"));
}

TEST(ParseDecoderConfig, ArchitectureIsLookedUp) {
  const auto parsed = ParseDecoderConfig(Config("qwen3"));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->family, "qwen3");
  EXPECT_EQ(parsed->architecture, "Qwen3ForCausalLM");

  json by_type = Config("mistral");
  by_type.erase("architectures");
  EXPECT_EQ(ParseDecoderConfig(by_type)->architecture, "MistralForCausalLM");

  const std::string known =
      "LlamaForCausalLM, MistralForCausalLM, OPTForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM";
  EXPECT_THAT(Fault(With("llama", {{"architectures", {"GPT2LMHeadModel"}}})),
              AllOf(HasSubstr("GPT2LMHeadModel"), HasSubstr(known)));
  EXPECT_THAT(Fault(json::object()), AllOf(HasSubstr("is missing"), HasSubstr(known)));
  EXPECT_THAT(Fault({{"model_type", "gpt2"}}), AllOf(HasSubstr("gpt2"), HasSubstr(known)));
  EXPECT_THAT(Fault(With("llama", {{"model_type", "mistral"}})), HasSubstr("does not go with"));
  EXPECT_THAT(Fault(json::array()), HasSubstr("must be an object"));
}

TEST(ParseDecoderConfig, AllFaultsAtOnce) {
  const std::string message = Fault(With("llama", {{"hidden_size", -4},
                                                   {"num_hidden_layers", 0},
                                                   {"num_key_value_heads", 3},
                                                   {"vocab_size", "many"},
                                                   {"intermediate_size", nullptr},
                                                   {"rms_norm_eps", "1e-5"},
                                                   {"tie_word_embeddings", 1},
                                                   {"head_dim", 7},
                                                   {"hidden_act", "gelu"},
                                                   {"rope_scaling", {{"rope_type", "longrope"}}}}));
  EXPECT_THAT(message, HasSubstr("hidden_size: must be an integer from 1 to 1048576, found -4"));
  EXPECT_THAT(message, HasSubstr("num_hidden_layers: must be an integer from 1 to 10000, found 0"));
  EXPECT_THAT(message, HasSubstr("num_attention_heads: must be a multiple of num_key_value_heads, "
                                 "found 8 and 3"));
  EXPECT_THAT(message, HasSubstr("vocab_size: must be an integer"));
  EXPECT_THAT(message, HasSubstr("intermediate_size: is missing"));
  EXPECT_THAT(message, HasSubstr("rms_norm_eps: must be a number"));
  EXPECT_THAT(message, HasSubstr("tie_word_embeddings: must be true or false, found 1"));
  EXPECT_THAT(message, HasSubstr("head_dim: must be even"));
  EXPECT_THAT(message, HasSubstr("hidden_act: \"gelu\""));
  EXPECT_THAT(message, HasSubstr("rope_scaling.rope_type: \"longrope\" is not supported; known:"));
}

TEST(ParseDecoderConfig, RefusesOneByOne) {
  const auto fault = [](const json& changes) { return Fault(With("llama", changes)); };
  EXPECT_THAT(fault({{"hidden_size", 18446744073709551615u}}), HasSubstr("hidden_size: must be"));
  EXPECT_THAT(fault({{"hidden_size", 1e18}}), HasSubstr("hidden_size: must be"));
  EXPECT_THAT(fault({{"hidden_size", 64.0}}), HasSubstr("hidden_size: must be"));
  EXPECT_THAT(fault({{"hidden_size", {64}}}), HasSubstr("found a list"));
  EXPECT_THAT(fault({{"hidden_size", 60}}), HasSubstr("where head_dim is not given"));
  EXPECT_THAT(fault({{"num_key_value_heads", 0}}), HasSubstr("num_key_value_heads: must be"));
  EXPECT_THAT(fault({{"num_hidden_layers", 1'000'000'000}}), HasSubstr("num_hidden_layers"));
  EXPECT_THAT(fault({{"max_position_embeddings", 0}}), HasSubstr("max_position_embeddings"));
  EXPECT_THAT(fault({{"rope_theta", 0}}), HasSubstr("rope_theta"));
  EXPECT_THAT(fault({{"partial_rotary_factor", 0.5}}), HasSubstr("partial_rotary_factor: only 1"));
  EXPECT_THAT(fault({{"attention_dropout", 0.1}}), HasSubstr("attention_dropout"));
  EXPECT_THAT(fault({{"quantization_config", {{"bits", 4}}}}), HasSubstr("quantization_config"));
  EXPECT_THAT(fault({{"rope_scaling", "linear"}}), HasSubstr("rope_scaling: must be an object"));
  EXPECT_THAT(Fault(With("qwen3", {{"head_dim", nullptr}})), HasSubstr("head_dim"));
  EXPECT_THAT(Fault(With("mistral", {{"sliding_window", 0}})), HasSubstr("sliding_window: must"));
  EXPECT_THAT(Fault(With("mistral", {{"layer_types", {"full_attention"}}})),
              HasSubstr("layer_types"));
  const auto rope = [&fault](const json& block) { return fault({{"rope_parameters", block}}); };
  EXPECT_THAT(rope({{"rope_type", "linear"}}), HasSubstr("rope_parameters.factor: is missing"));
  EXPECT_THAT(rope({{"rope_type", "linear"}, {"factor", 0.5}}), HasSubstr("factor: must be"));
  EXPECT_THAT(rope({{"rope_type", "linear"}, {"factor", 2}, {"partial_rotary_factor", 0.25}}),
              HasSubstr("rope_parameters.partial_rotary_factor"));
  EXPECT_THAT(rope({{"rope_type", 3}}), HasSubstr("rope_parameters.rope_type: must be a string"));
  EXPECT_THAT(rope({{"full_attention", {{"rope_type", "default"}}}}), HasSubstr("differs between"));
  EXPECT_THAT(
      rope({{"rope_type", "llama3"}, {"factor", 8}}),
      AllOf(HasSubstr("low_freq_factor: is missing"), HasSubstr("high_freq_factor: is missing")));
  EXPECT_THAT(rope({{"rope_type", "llama3"},
                    {"factor", 8},
                    {"low_freq_factor", 4},
                    {"high_freq_factor", 1}}),
              HasSubstr("must be above low_freq_factor"));
  EXPECT_THAT(rope({{"rope_type", "yarn"}}), HasSubstr("factor: is missing"));
  EXPECT_THAT(
      rope({{"rope_type", "yarn"}, {"factor", 2}, {"original_max_position_embeddings", -1}}),
      HasSubstr("original_max_position_embeddings"));
}

TEST(ParseDecoderConfig, LayerTypesMustFit) {
  const auto fault = [](const json& types, bool use) {
    return Fault(With("qwen2", {{"layer_types", types}, {"use_sliding_window", use}}));
  };
  EXPECT_THAT(fault({"full_attention"}, true), HasSubstr("has 1 entries for 3"));
  EXPECT_THAT(fault({"full_attention", "linear_attention", "full_attention"}, true),
              HasSubstr("entry 1 is \"linear_attention\""));
  EXPECT_THAT(fault({"full_attention", "sliding_attention", "full_attention"}, false),
              HasSubstr("is off"));
  EXPECT_THAT(fault("full_attention", true), HasSubstr("must be a list"));
}

TEST(ExpectedTensors, OrderOfTheForwardPass) {
  const auto names = [](const json& json_config) {
    std::vector<std::string> out;
    for (const TensorSpec& spec : ExpectedTensors(ParseDecoderConfig(json_config).value())) {
      out.push_back(spec.name);
    }
    return out;
  };
  EXPECT_THAT(
      names(With("qwen3", {{"num_hidden_layers", 1}})),
      ElementsAre(
          "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight",
          "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight",
          "model.layers.0.self_attn.v_proj.weight", "model.layers.0.self_attn.q_norm.weight",
          "model.layers.0.self_attn.k_norm.weight", "model.layers.0.self_attn.o_proj.weight",
          "model.layers.0.post_attention_layernorm.weight", "model.layers.0.mlp.gate_proj.weight",
          "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight",
          "model.norm.weight", "lm_head.weight"));
  EXPECT_THAT(names(With("llama", {{"tie_word_embeddings", true}})),
              Not(testing::Contains("lm_head.weight")));
}

// Like facebook/opt-125m's, smaller.
json OptConfig(const json& changes = json::object()) {
  json config = {{"architectures", {"OPTForCausalLM"}},
                 {"model_type", "opt"},
                 {"activation_function", "relu"},
                 {"attention_dropout", 0.0},
                 {"do_layer_norm_before", true},
                 {"dropout", 0.1},
                 {"ffn_dim", 48},
                 {"hidden_size", 64},
                 {"init_std", 0.03},
                 {"layerdrop", 0.0},
                 {"max_position_embeddings", 96},
                 {"num_attention_heads", 8},
                 {"num_hidden_layers", 1},
                 {"torch_dtype", "float16"},
                 {"vocab_size", 40},
                 {"word_embed_proj_dim", 64}};
  config.update(changes);
  return config;
}

std::string TensorLines(const json& json_config) {
  std::string lines;
  for (const TensorSpec& spec : ExpectedTensors(ParseDecoderConfig(json_config).value())) {
    lines += spec.name;
    for (const int64_t size : spec.shape) lines += " " + std::to_string(size);
    lines += "\n";
  }
  return lines;
}

TEST(Opt, ConfigAndTensors) {
  const auto config = ParseDecoderConfig(OptConfig());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->family, "opt");
  EXPECT_EQ(config->kv_heads, 8);
  EXPECT_EQ(config->head_dim, 8);
  EXPECT_EQ(config->initializer_range, 0.03);
  EXPECT_EQ(config->weights_type, "float16");
  EXPECT_TRUE(config->tied_embeddings);
  EXPECT_FALSE(config->post_norm);
  EXPECT_FALSE(config->projected_embedding());
  EXPECT_EQ(TensorLines(OptConfig()),
            "model.decoder.embed_tokens.weight 40 64\n"
            "model.decoder.embed_positions.weight 98 64\n"
            "model.decoder.layers.0.self_attn_layer_norm.weight 64\n"
            "model.decoder.layers.0.self_attn_layer_norm.bias 64\n"
            "model.decoder.layers.0.self_attn.q_proj.weight 64 64\n"
            "model.decoder.layers.0.self_attn.q_proj.bias 64\n"
            "model.decoder.layers.0.self_attn.k_proj.weight 64 64\n"
            "model.decoder.layers.0.self_attn.k_proj.bias 64\n"
            "model.decoder.layers.0.self_attn.v_proj.weight 64 64\n"
            "model.decoder.layers.0.self_attn.v_proj.bias 64\n"
            "model.decoder.layers.0.self_attn.out_proj.weight 64 64\n"
            "model.decoder.layers.0.self_attn.out_proj.bias 64\n"
            "model.decoder.layers.0.final_layer_norm.weight 64\n"
            "model.decoder.layers.0.final_layer_norm.bias 64\n"
            "model.decoder.layers.0.fc1.weight 48 64\n"
            "model.decoder.layers.0.fc1.bias 48\n"
            "model.decoder.layers.0.fc2.weight 64 48\n"
            "model.decoder.layers.0.fc2.bias 64\n"
            "model.decoder.final_layer_norm.weight 64\n"
            "model.decoder.final_layer_norm.bias 64\n");
}

// facebook/opt-350m's form.
TEST(Opt, PostNormWithANarrowEmbedding) {
  const json json_config = OptConfig(
      {{"do_layer_norm_before", false}, {"word_embed_proj_dim", 32}, {"enable_bias", false}});
  const DecoderConfig config = ParseDecoderConfig(json_config).value();
  EXPECT_TRUE(config.post_norm);
  EXPECT_FALSE(config.final_norm);
  EXPECT_TRUE(config.projected_embedding());
  EXPECT_EQ(TensorLines(json_config),
            "model.decoder.embed_tokens.weight 40 32\n"
            "model.decoder.project_in.weight 64 32\n"
            "model.decoder.embed_positions.weight 98 64\n"
            "model.decoder.layers.0.self_attn.q_proj.weight 64 64\n"
            "model.decoder.layers.0.self_attn.k_proj.weight 64 64\n"
            "model.decoder.layers.0.self_attn.v_proj.weight 64 64\n"
            "model.decoder.layers.0.self_attn.out_proj.weight 64 64\n"
            "model.decoder.layers.0.self_attn_layer_norm.weight 64\n"
            "model.decoder.layers.0.self_attn_layer_norm.bias 64\n"
            "model.decoder.layers.0.fc1.weight 48 64\n"
            "model.decoder.layers.0.fc2.weight 64 48\n"
            "model.decoder.layers.0.final_layer_norm.weight 64\n"
            "model.decoder.layers.0.final_layer_norm.bias 64\n"
            "model.decoder.project_out.weight 32 64\n");
}

TEST(Opt, RefusesWhatItDoesNotCompute) {
  const std::string message = Fault(OptConfig({{"activation_function", "gelu"},
                                               {"layerdrop", 0.1},
                                               {"attention_dropout", 0.1},
                                               {"layer_norm_elementwise_affine", false},
                                               {"num_attention_heads", 7},
                                               {"ffn_dim", nullptr}}));
  EXPECT_THAT(message, HasSubstr("activation_function: \"gelu\" is not supported; known: relu"));
  EXPECT_THAT(message, HasSubstr("layerdrop: only 0"));
  EXPECT_THAT(message, HasSubstr("attention_dropout: only 0"));
  EXPECT_THAT(message, HasSubstr("layer_norm_elementwise_affine: only true"));
  EXPECT_THAT(message, HasSubstr("hidden_size: must be a multiple of num_attention_heads"));
  EXPECT_THAT(message, HasSubstr("ffn_dim: is missing"));
}

TEST(Opt, LearnedPositionsEndWithTheTable) {
  const DecoderConfig config = ParseDecoderConfig(OptConfig()).value();
  EXPECT_TRUE(CheckRunLength(config, 96).ok());
  EXPECT_THAT(std::string(CheckRunLength(config, 97).message()),
              AllOf(HasSubstr("max_length: 97"), HasSubstr("limit of 96"), HasSubstr("table")));
}

TEST(LinearModules, WhatAnAdapterMayTarget) {
  EXPECT_THAT(LinearModules(ParseDecoderConfig(OptConfig()).value()),
              ElementsAre("model.decoder.layers.0.self_attn.q_proj",
                          "model.decoder.layers.0.self_attn.k_proj",
                          "model.decoder.layers.0.self_attn.v_proj",
                          "model.decoder.layers.0.self_attn.out_proj", "model.decoder.layers.0.fc1",
                          "model.decoder.layers.0.fc2"));
  EXPECT_THAT(LinearModules(ParseDecoderConfig(With("llama", {{"num_hidden_layers", 1}})).value()),
              ElementsAre("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj",
                          "model.layers.0.self_attn.v_proj", "model.layers.0.self_attn.o_proj",
                          "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj",
                          "model.layers.0.mlp.down_proj"));
}

TEST(CheckRunLength, PositionsAndWindows) {
  const auto config = [](const std::string& family, const json& changes) {
    return ParseDecoderConfig(With(family, changes)).value();
  };
  const DecoderConfig plain = config("llama", {{"max_position_embeddings", 100}});
  EXPECT_TRUE(CheckRunLength(plain, 100).ok());
  EXPECT_FALSE(CheckRunLength(plain, 101).ok());
  EXPECT_FALSE(CheckRunLength(plain, 0).ok());
  EXPECT_FALSE(CheckRunLength(plain, -5).ok());
  const auto scaled = [&config](const std::string& type) {
    return MaxPositions(config("llama", {{"max_position_embeddings", 100},
                                         {"rope_scaling",
                                          {{"type", type},
                                           {"factor", 2.5},
                                           {"low_freq_factor", 1},
                                           {"high_freq_factor", 4},
                                           {"original_max_position_embeddings", 50}}}}));
  };
  EXPECT_EQ(scaled("linear"), 250);
  EXPECT_EQ(scaled("dynamic"), 250);
  EXPECT_EQ(scaled("yarn"), 125);
  EXPECT_EQ(scaled("llama3"), 100);

  const DecoderConfig windowed = config(
      "qwen2", {{"use_sliding_window", true}, {"sliding_window", 16}, {"max_window_layers", 1}});
  EXPECT_THAT(windowed.sliding_window, ElementsAre(0, 16, 16));
  EXPECT_TRUE(CheckRunLength(windowed, 16).ok());
  const absl::Status longer = CheckRunLength(windowed, 17);
  EXPECT_EQ(longer.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(longer.message()),
              AllOf(HasSubstr("window of 16"), HasSubstr("layer 1")));
  EXPECT_TRUE(CheckRunLength(config("mistral", {{"sliding_window", nullptr}}), 100'000).ok());
  EXPECT_FALSE(CheckRunLength(config("mistral", json::object()), 4097).ok());
}

class LoadDecoderConfigTest : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = fs::path(testing::TempDir()) / ("family_test." + std::to_string(::getpid()));
    fs::create_directories(dir_);
  }
  void TearDown() override { fs::remove_all(dir_); }

  std::string FaultOf(const std::string& text) {
    std::ofstream(dir_ / "config.json") << text;
    const auto loaded = LoadDecoderConfig(dir_);
    if (loaded.ok()) return "was accepted";
    EXPECT_EQ(loaded.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(loaded.status().message()), HasSubstr((dir_ / "config.json").string()));
    return std::string(loaded.status().message());
  }

  fs::path dir_;
};

TEST_F(LoadDecoderConfigTest, ReadsAModelDirectory) {
  const auto config = LoadDecoderConfig(LEMO_SOURCE_DIR "/tests/fixtures/stories260k");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->hidden, 64);
  EXPECT_EQ(config->kv_heads, 4);
  EXPECT_TRUE(config->tied_embeddings);
  EXPECT_EQ(config->weights_type, "float32");
}

TEST_F(LoadDecoderConfigTest, EveryBrokenFileHasOneClearStatus) {
  EXPECT_EQ(LoadDecoderConfig(dir_ / "absent").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(LoadDecoderConfig(dir_).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(FaultOf(""), HasSubstr("not JSON"));
  EXPECT_THAT(FaultOf("{\"a\": \xff}"), HasSubstr("not JSON"));
  EXPECT_THAT(FaultOf("{\"hidden_size\": NaN}"), HasSubstr("not JSON"));
  EXPECT_THAT(FaultOf("{\"hidden_size\": 1e999}"), HasSubstr("not JSON"));
  EXPECT_THAT(FaultOf("[]"), HasSubstr("must be an object"));
  EXPECT_THAT(FaultOf(std::string(5 << 20, ' ')), HasSubstr("larger than the limit"));
  // Deeper than a stack would hold, in every place that is looked at.
  const std::string deep = std::string(200'000, '[') + std::string(200'000, ']');
  EXPECT_THAT(FaultOf(deep), HasSubstr("must be an object"));
  EXPECT_THAT(FaultOf("{\"architectures\": " + deep + "}"), HasSubstr("a list"));
  EXPECT_THAT(FaultOf("{\"model_type\": " + deep + "}"), HasSubstr("a list"));
  EXPECT_THAT(FaultOf("{\"model_type\": \"llama\", \"hidden_size\": " + deep + "}"),
              HasSubstr("a list"));
}

}  // namespace
}  // namespace lemo::train
