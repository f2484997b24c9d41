#include "worker/train/data/positions.h"

#include <map>
#include <numeric>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/train/data/random.h"

namespace lemo::train {
namespace {

using ::testing::ElementsAre;

std::vector<int32_t> Positions(const PositionSkip& skip, uint64_t key, int64_t length) {
  std::vector<int32_t> positions;
  AppendPositions(skip, key, length, &positions);
  return positions;
}

TEST(Positions, AreConsecutiveWhereNothingIsToBeSkipped) {
  std::vector<int32_t> consecutive(64);
  std::iota(consecutive.begin(), consecutive.end(), 0);
  for (const PositionSkip& skip :
       {PositionSkip{}, PositionSkip{.target = 64, .chunks = 2},
        PositionSkip{.target = 63, .chunks = 2}, PositionSkip{.target = 1000, .chunks = 1}}) {
    EXPECT_EQ(Positions(skip, 7, 64), consecutive) << skip.target << ", " << skip.chunks;
  }
  EXPECT_THAT(Positions({.target = 1000, .chunks = 2}, 7, 1), ElementsAre(0));
  EXPECT_THAT(Positions({.target = 1000, .chunks = 2}, 7, 0), ElementsAre());
}

TEST(Positions, BeginAtZeroAscendInPartsAndStayBelowTheTarget) {
  for (const int64_t length : {2, 3, 17, 64}) {
    for (const int64_t target : {length + 1, int64_t{100}, int64_t{100'000}}) {
      for (const int64_t chunks : {2, 3, 9, 100}) {
        for (uint64_t key = 0; key < 50; ++key) {
          const std::vector<int32_t> positions =
              Positions({.target = target, .chunks = chunks}, MixBits(key), length);
          ASSERT_EQ(std::ssize(positions), length);
          EXPECT_EQ(positions.front(), 0);
          EXPECT_LT(positions.back(), target);
          int64_t gaps = 0;
          for (size_t i = 1; i < positions.size(); ++i) {
            EXPECT_GT(positions[i], positions[i - 1]);
            gaps += positions[i] - positions[i - 1] > 1 ? 1 : 0;
          }
          EXPECT_LT(gaps, chunks);
        }
      }
    }
  }
}

// Section 3.2 of the paper, with the text that is there: where the first part ends and how much is
// skipped behind it are even. Two cuts of three tokens, skips of 0 to 3.
TEST(Positions, CutsAndSkipsAreEven) {
  std::map<std::vector<int32_t>, int> counts;
  for (uint64_t key = 0; key < 8000; ++key) {
    ++counts[Positions({.target = 6, .chunks = 2}, MixBits(key), 3)];
  }
  EXPECT_EQ(counts.size(), 7u);
  for (const auto& [positions, count] : counts) {
    // Five standard deviations of a binomial draw.
    const bool unskipped = positions.back() == 2;
    EXPECT_NEAR(count, unskipped ? 2000 : 1000, unskipped ? 194 : 148)
        << ::testing::PrintToString(positions);
  }
}

// A resumed run goes on with the draws of the build that began it: they must never change.
TEST(Positions, ArePinned) {
  EXPECT_THAT(Positions({.target = 1000, .chunks = 2}, 42, 10),
              ElementsAre(0, 1, 2, 3, 4, 119, 120, 121, 122, 123));
  EXPECT_THAT(Positions({.target = 1000, .chunks = 3}, 42, 10),
              ElementsAre(0, 1, 263, 264, 265, 671, 672, 673, 674, 675));
}

}  // namespace
}  // namespace lemo::train
