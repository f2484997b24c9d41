// Every key and default of config.json as transformers reads it (configs.json, made by record.py).
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "worker/train/model/family/family.h"
#include "worker/train/model/rope.h"

namespace lemo::train {
namespace {

TEST(ModelConfigParity, SameModelAsTransformers) {
  std::ifstream file(LEMO_SOURCE_DIR "/tests/parity/model_config/configs.json");
  const nlohmann::json recorded = nlohmann::json::parse(file);
  ASSERT_GE(recorded["cases"].size(), 40u);
  for (const nlohmann::json& one : recorded["cases"]) {
    SCOPED_TRACE(one["config"].dump());
    const nlohmann::json& want = one["read"];
    const absl::StatusOr<DecoderConfig> config = ParseDecoderConfig(one["config"]);
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->family, one["config"]["model_type"]);
    EXPECT_EQ(config->max_positions, want["max_positions"]);
    EXPECT_EQ(config->rms_norm_eps, want["rms_norm_eps"]);
    EXPECT_EQ(config->initializer_range, want["initializer_range"]);
    EXPECT_EQ(config->tied_embeddings, want["tied_embeddings"]);
    EXPECT_EQ(config->weights_type, want["dtype"] == "None" ? "float32" : want["dtype"]);
    EXPECT_EQ(config->sliding_window, want["sliding_window"].get<std::vector<int64_t>>());

    const RopeFrequencies rope = ComputeRopeFrequencies(config->rope, config->head_dim, 1);
    const std::vector<double> inv_freq = want["inv_freq"];
    EXPECT_DOUBLE_EQ(rope.scale, want["scale"]);
    ASSERT_EQ(rope.inv_freq.size(), inv_freq.size());
    for (size_t i = 0; i < inv_freq.size(); ++i) {
      EXPECT_NEAR(rope.inv_freq[i], inv_freq[i], 1.2e-7 * inv_freq[i]) << "index " << i;
    }

    std::map<std::string, std::vector<int64_t>> tensors;
    size_t count = 0;
    for (const TensorSpec& spec : ExpectedTensors(*config)) {
      ++count;
      const bool layer = spec.name.find("layers.") != std::string::npos;
      if (!layer || spec.name.find("layers.0.") != std::string::npos) {
        tensors[spec.name] = spec.shape;
      }
    }
    const std::map<std::string, std::vector<int64_t>> want_tensors = want["tensors"];
    EXPECT_EQ(tensors, want_tensors);
    EXPECT_EQ(count, want["tensor_count"]);
  }
}

}  // namespace
}  // namespace lemo::train
