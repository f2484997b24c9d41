#include "tests/e2e/train/model_writer.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "common/safetensors.h"
#include "tests/e2e/train/workspace.h"

namespace lemo::train {

void WriteBfloat16Model(const std::filesystem::path& directory, const nlohmann::json& config) {
  std::filesystem::create_directories(directory);
  for (const char* file : {"tokenizer.json", "tokenizer_config.json"}) {
    std::filesystem::copy_file(Workspace::Model() / file, directory / file,
                               std::filesystem::copy_options::overwrite_existing);
  }
  nlohmann::json all = nlohmann::json::parse(ReadAll(Workspace::Model() / "config.json"));
  all.update(config);
  all["torch_dtype"] = "bfloat16";
  std::ofstream(directory / "config.json") << all.dump(1);

  std::mt19937 random(11);
  std::map<std::string, std::vector<uint16_t>> values;
  std::map<std::string, TensorView> views;
  const auto add = [&](const std::string& name, const std::vector<int64_t>& shape) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    std::vector<uint16_t>& tensor = values[name];
    tensor.resize(static_cast<size_t>(count));
    for (uint16_t& value : tensor) {
      // Norms are 1; the rest is uniform in +-0.05, cut to the upper half of a float.
      float number = 1;
      if (shape.size() > 1) {
        number = (static_cast<float>(random() % 2001) - 1000.0F) * 0.05F / 1000.0F;
      }
      uint32_t bits = 0;
      std::memcpy(&bits, &number, sizeof(bits));
      value = static_cast<uint16_t>(bits >> 16);
    }
    views[name] = {
        TensorType::kBF16,
        shape,
        {reinterpret_cast<const char*>(tensor.data()), tensor.size() * sizeof(uint16_t)}};
  };
  const auto size = [&](const char* key) { return all.at(key).get<int64_t>(); };
  const int64_t hidden = size("hidden_size"), inner = size("intermediate_size");
  const int64_t query = size("num_attention_heads") * size("head_dim");
  const int64_t key = size("num_key_value_heads") * size("head_dim");
  add("model.embed_tokens.weight", {size("vocab_size"), hidden});
  add("model.norm.weight", {hidden});
  for (int64_t layer = 0; layer < size("num_hidden_layers"); ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    add(prefix + "input_layernorm.weight", {hidden});
    add(prefix + "post_attention_layernorm.weight", {hidden});
    add(prefix + "self_attn.q_proj.weight", {query, hidden});
    add(prefix + "self_attn.k_proj.weight", {key, hidden});
    add(prefix + "self_attn.v_proj.weight", {key, hidden});
    add(prefix + "self_attn.o_proj.weight", {hidden, query});
    add(prefix + "mlp.gate_proj.weight", {inner, hidden});
    add(prefix + "mlp.up_proj.weight", {inner, hidden});
    add(prefix + "mlp.down_proj.weight", {hidden, inner});
  }
  ASSERT_TRUE(all.at("tie_word_embeddings").get<bool>());
  const absl::Status written =
      WriteSafetensors(directory / "model.safetensors", views, {{"format", "pt"}});
  ASSERT_TRUE(written.ok()) << written;
}

}  // namespace lemo::train
