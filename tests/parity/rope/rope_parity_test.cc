// Frequencies and angles against transformers' (rope.json, made by record.py).
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "worker/train/model/family/family.h"
#include "worker/train/model/rope.h"

namespace lemo::train {
namespace {

const nlohmann::json& Cases() {
  static const auto* const kRecorded = [] {
    std::ifstream file(LEMO_SOURCE_DIR "/tests/parity/rope/rope.json");
    return new nlohmann::json(nlohmann::json::parse(file));
  }();
  return kRecorded->at("cases");
}

// transformers' powers come from a vector library that promises one unit in the last place; ours
// are exact before rounding. Fewer than one frequency in fifty differs, and then by that unit.
constexpr double kUnit = 1.2e-7;

// One unit of a frequency, at this angle, plus the rounding of fp32 cos and sin.
double AngleTolerance(double position, double inv_freq, double scale) {
  return scale * (position * inv_freq * kUnit + 1.5e-7);
}

TEST(RopeParity, FrequenciesAndScale) {
  int64_t compared = 0, different = 0;
  for (const nlohmann::json& recorded : Cases()) {
    SCOPED_TRACE(recorded["name"].get<std::string>());
    const auto config = ParseDecoderConfig(recorded["config"]);
    ASSERT_TRUE(config.ok()) << config.status();
    const nlohmann::json* expected = nullptr;
    for (const nlohmann::json& run : recorded["runs"]) {
      if (run.contains("inv_freq")) expected = &run["inv_freq"];
      const RopeFrequencies found =
          ComputeRopeFrequencies(config->rope, recorded["head_dim"], run["length"]);
      EXPECT_DOUBLE_EQ(found.scale, run["scale"]);
      ASSERT_EQ(found.inv_freq.size(), expected->size());
      for (size_t i = 0; i < expected->size(); ++i) {
        const double want = (*expected)[i];
        EXPECT_EQ(found.inv_freq[i], static_cast<double>(static_cast<float>(found.inv_freq[i])));
        ++compared;
        if (found.inv_freq[i] == want) continue;
        ++different;
        EXPECT_LE(std::abs(found.inv_freq[i] - want), kUnit * want) << "index " << i;
      }
    }
  }
  RecordProperty("different", std::to_string(different));
  EXPECT_GT(compared, 1000);
  EXPECT_LT(different * 50, compared) << different << " of " << compared;
}

template <typename Real>
void CompareTables() {
  for (const nlohmann::json& recorded : Cases()) {
    SCOPED_TRACE(recorded["name"].get<std::string>());
    const auto config = ParseDecoderConfig(recorded["config"]);
    ASSERT_TRUE(config.ok()) << config.status();
    const int64_t head_dim = recorded["head_dim"];
    for (const nlohmann::json& run : recorded["runs"]) {
      const std::vector<int32_t> positions = run["positions"];
      const std::vector<int64_t> columns = run["columns"];
      const std::vector<int32_t> starts = {0, static_cast<int32_t>(positions.size())};
      std::vector<Real> cos(positions.size() * head_dim / 2), sin(cos.size());
      FillRopeTables(config->rope, head_dim, positions, starts, cos.data(), sin.data());
      const RopeFrequencies frequencies =
          ComputeRopeFrequencies(config->rope, head_dim, run["length"]);
      for (size_t row = 0; row < positions.size(); ++row) {
        for (size_t c = 0; c < columns.size(); ++c) {
          // The double tables leave out transformers' rounding of the angle, half a unit more.
          const double tolerance =
              AngleTolerance(positions[row], frequencies.inv_freq[columns[c]], frequencies.scale);
          const size_t at = row * head_dim / 2 + columns[c];
          EXPECT_NEAR(cos[at], run["cos"][row][c].get<double>(), tolerance)
              << "position " << positions[row] << " column " << columns[c];
          EXPECT_NEAR(sin[at], run["sin"][row][c].get<double>(), tolerance)
              << "position " << positions[row] << " column " << columns[c];
        }
      }
    }
  }
}

TEST(RopeParity, FloatTables) { CompareTables<float>(); }
TEST(RopeParity, DoubleTables) { CompareTables<double>(); }

}  // namespace
}  // namespace lemo::train
