#include "common/format.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"

namespace lemo::train {
namespace {

TEST(Format, Bytes) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(1536), "1.5 KiB");
  EXPECT_EQ(HumanBytes(int64_t{3} << 40), "3.0 TiB");
  EXPECT_EQ(HumanBytes(std::numeric_limits<int64_t>::max()), "8192.0 PiB");
}

TEST(Format, Counts) {
  EXPECT_EQ(HumanCount(7), "7");
  EXPECT_EQ(HumanCount(1000), "1,000");
  EXPECT_EQ(HumanCount(-123456), "-123,456");
  EXPECT_EQ(HumanCount(1234567), "1,234,567");
  EXPECT_EQ(ShortCount(950), "950");
  EXPECT_EQ(ShortCount(5210), "5.2k");
  EXPECT_EQ(ShortCount(999999), "1.0M");
  EXPECT_EQ(ShortCount(NAN), "n/a");
}

TEST(Format, Durations) {
  EXPECT_EQ(HumanDuration(3.44), "3.4 s");
  EXPECT_EQ(HumanDuration(83), "1 min 23 s");
  EXPECT_EQ(HumanDuration(7500), "2 h 5 min");
  EXPECT_EQ(HumanDuration(100 * 3600), "4 d 4 h");
  EXPECT_EQ(HumanDuration(NAN), "n/a");
  EXPECT_EQ(HumanDuration(1e300), "n/a");
  EXPECT_EQ(ClockDuration(32.4), "0:32");
  EXPECT_EQ(ClockDuration(3723), "1:02:03");
  EXPECT_EQ(ClockDuration(-1), "-:--");
}

TEST(Format, NumbersAndTimes) {
  EXPECT_EQ(Fixed(1.23456, 2), "1.23");
  EXPECT_EQ(Fixed(INFINITY, 2), "n/a");
  EXPECT_EQ(Significant(25.79034, 5), "25.79");
  EXPECT_EQ(Significant(NAN, 5), "n/a");
  EXPECT_EQ(UtcTime(1767225600.7), "2026-01-01 00:00:00 UTC");
}

}  // namespace
}  // namespace lemo::train
