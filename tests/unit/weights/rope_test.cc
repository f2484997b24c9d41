#include "worker/train/model/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace lemo::train {
namespace {

struct Tables {
  std::vector<float> cos, sin;
};

Tables Fill(const RopeConfig& config, int64_t head_dim, const std::vector<int32_t>& positions,
            const std::vector<int32_t>& starts) {
  Tables tables;
  tables.cos.resize(positions.size() * head_dim / 2);
  tables.sin.resize(tables.cos.size());
  FillRopeTables(config, head_dim, positions, starts, tables.cos.data(), tables.sin.data());
  return tables;
}

TEST(Rope, PlainByHand) {
  const Tables tables = Fill({.theta = 100.0}, 4, {0, 1, 3}, {0, 3});
  // Frequencies 1 and 1 / 100^(2/4) = 0.1.
  const std::vector<double> angles = {0, 0, 1, 0.1, 3, 0.3};
  for (size_t i = 0; i < angles.size(); ++i) {
    EXPECT_NEAR(tables.cos[i], std::cos(angles[i]), 1e-6) << i;
    EXPECT_NEAR(tables.sin[i], std::sin(angles[i]), 1e-6) << i;
  }
}

TEST(Rope, DynamicTakesEachDocumentsOwnLength) {
  const RopeConfig config{
      .scaling = RopeConfig::Scaling::kDynamic, .factor = 2.0, .original_max_positions = 4};
  const std::vector<int32_t> short_one = {0, 1, 2};
  const std::vector<int32_t> long_one = {0, 1, 2, 3, 4, 5, 6, 7, 8};
  std::vector<int32_t> both = short_one;
  both.insert(both.end(), long_one.begin(), long_one.end());
  const Tables packed = Fill(config, 8, both, {0, 3, 12});
  Tables apart = Fill(config, 8, short_one, {0, 3});
  const Tables second = Fill(config, 8, long_one, {0, 9});
  apart.cos.insert(apart.cos.end(), second.cos.begin(), second.cos.end());
  apart.sin.insert(apart.sin.end(), second.sin.begin(), second.sin.end());
  EXPECT_EQ(packed.cos, apart.cos);
  EXPECT_EQ(packed.sin, apart.sin);

  const Tables plain = Fill({}, 8, both, {0, 3, 12});
  EXPECT_TRUE(std::equal(plain.cos.begin(), plain.cos.begin() + 12, packed.cos.begin()));
  EXPECT_NE(plain.cos, packed.cos) << "the long document must be stretched";
}

TEST(Rope, EmptyDocumentsAndNoRows) {
  EXPECT_TRUE(Fill({}, 8, {}, {0}).cos.empty());
  EXPECT_TRUE(Fill({}, 8, {}, {}).cos.empty());
  EXPECT_EQ(Fill({}, 8, {0, 1}, {0, 0, 2, 2}).cos, Fill({}, 8, {0, 1}, {0, 2}).cos);
}

}  // namespace
}  // namespace lemo::train
