#include "worker/train/optim/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace lemo::train {
namespace {

using ::testing::DoubleNear;
using ::testing::Pointwise;

constexpr auto kConstant = Schedule::Shape::kConstant;
constexpr auto kLinear = Schedule::Shape::kLinear;
constexpr auto kCosine = Schedule::Shape::kCosine;

std::vector<double> Rates(const Schedule& schedule, const std::vector<int64_t>& steps) {
  std::vector<double> rates;
  for (const int64_t step : steps) rates.push_back(schedule.At(step));
  return rates;
}

Schedule Make(Schedule::Shape shape, double min_ratio = 0.0) {
  return {
      .shape = shape, .peak = 2e-3, .warmup_steps = 4, .total_steps = 12, .min_ratio = min_ratio};
}

TEST(Schedule, RisesFromZeroWhateverTheShape) {
  for (const auto shape : {kConstant, kLinear, kCosine}) {
    for (const double min_ratio : {0.0, 0.5}) {
      EXPECT_THAT(Rates(Make(shape, min_ratio), {0, 1, 2, 3, 4}),
                  Pointwise(DoubleNear(1e-18), {0.0, 0.5e-3, 1e-3, 1.5e-3, 2e-3}));
    }
  }
}

TEST(Schedule, WithoutWarmUpStartsAtThePeak) {
  for (const auto shape : {kConstant, kLinear, kCosine}) {
    const Schedule schedule{.shape = shape, .peak = 3e-4, .warmup_steps = 0, .total_steps = 10};
    EXPECT_DOUBLE_EQ(schedule.At(0), 3e-4);
  }
}

TEST(Schedule, ConstantStays) {
  EXPECT_THAT(Rates(Make(kConstant, 0.1), {4, 7, 12, 100}),
              Pointwise(DoubleNear(1e-18), {2e-3, 2e-3, 2e-3, 2e-3}));
}

TEST(Schedule, LinearFalls) {
  EXPECT_THAT(Rates(Make(kLinear), {5, 6, 8, 11, 12, 13}),
              Pointwise(DoubleNear(1e-18), {1.75e-3, 1.5e-3, 1e-3, 0.25e-3, 0.0, 0.0}));
}

TEST(Schedule, CosineFalls) {
  // 0.5 (1 + cos(pi p)) at p = 1/8, 1/4, 1/2, 3/4, 1.
  EXPECT_THAT(Rates(Make(kCosine), {5, 6, 8, 10, 12, 99}),
              Pointwise(DoubleNear(1e-17), {2e-3 * 0.9619397662556434, 2e-3 * 0.8535533905932737,
                                            1e-3, 2e-3 * 0.14644660940672624, 0.0, 0.0}));
}

TEST(Schedule, EndsAtTheLeastRatio) {
  EXPECT_THAT(Rates(Make(kLinear, 0.1), {4, 8, 12, 50}),
              Pointwise(DoubleNear(1e-17), {2e-3, 1.1e-3, 0.2e-3, 0.2e-3}));
  EXPECT_THAT(Rates(Make(kCosine, 0.1), {4, 6, 8, 12, 50}),
              Pointwise(DoubleNear(1e-17),
                        {2e-3, 2e-3 * (0.1 + 0.9 * 0.8535533905932737), 1.1e-3, 0.2e-3, 0.2e-3}));
}

TEST(Schedule, WarmUpMayTakeTheWholeRun) {
  const Schedule schedule{.shape = kCosine, .peak = 1.0, .warmup_steps = 4, .total_steps = 4};
  EXPECT_THAT(Rates(schedule, {0, 2, 3, 4, 5}),
              Pointwise(DoubleNear(1e-15), {0.0, 0.5, 0.75, 1.0, 0.0}));
}

TEST(Schedule, NamesOfShapes) {
  EXPECT_EQ(ParseScheduleShape("constant"), kConstant);
  EXPECT_EQ(ParseScheduleShape("linear"), kLinear);
  EXPECT_EQ(ParseScheduleShape("cosine"), kCosine);
  for (const char* name : {"", "Cosine", "cosin", "linear "}) {
    EXPECT_EQ(ParseScheduleShape(name), std::nullopt) << name;
  }
}

}  // namespace
}  // namespace lemo::train
