#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>

#include "common/metrics.h"
#include "common/process_metrics.h"

namespace lemo::metrics {
namespace {

using ::testing::HasSubstr;

const Family kEvents = {Type::kCounter, "lemo_things_total", "Things.", {"kind"}};
const Family kSize = {Type::kGauge, "lemo_size_bytes", "Size."};
const Family kTime = {Type::kHistogram, "lemo_wait_seconds", "Wait.", {}, {1, 5}};

std::string FaultsOf(const Family& family) { return std::string(Check({&family}).message()); }

TEST(Check, TakesProperFamilies) {
  EXPECT_TRUE(Check({&kEvents, &kSize, &kTime}).ok()) << Check({&kEvents, &kSize, &kTime});
}

TEST(Check, NamesEveryFault) {
  EXPECT_THAT(FaultsOf({Type::kGauge, "Lemo_size", "h"}), HasSubstr("small letters"));
  EXPECT_THAT(FaultsOf({Type::kGauge, "size_bytes", "h"}), HasSubstr("begins with lemo_"));
  EXPECT_THAT(FaultsOf({Type::kCounter, "lemo_things", "h"}), HasSubstr("_total"));
  EXPECT_THAT(FaultsOf({Type::kGauge, "lemo_things_total", "h"}), HasSubstr("_total"));
  EXPECT_THAT(FaultsOf({Type::kGauge, "lemo_wait_ms", "h"}), HasSubstr("_ms"));
  EXPECT_THAT(FaultsOf({Type::kGauge, "lemo_wait_count", "h"}), HasSubstr("_count"));
  EXPECT_THAT(FaultsOf({Type::kGauge, "lemo_size", ""}), HasSubstr("no help"));
  EXPECT_THAT(FaultsOf({Type::kGauge, "lemo_size", "h", {"le"}}), HasSubstr("bad label le"));
  EXPECT_THAT(FaultsOf({Type::kGauge, "lemo_size", "h", {"a", "a"}}),
              HasSubstr("a is there twice"));
  EXPECT_THAT(FaultsOf({Type::kHistogram, "lemo_wait_seconds", "h"}), HasSubstr("have bounds"));
  EXPECT_THAT(FaultsOf({Type::kHistogram, "lemo_wait_seconds", "h", {}, {1, 1}}),
              HasSubstr("ascend"));
  EXPECT_THAT(std::string(Check({&kSize, &kTime, &kSize}).message()),
              HasSubstr("lemo_size_bytes: is there twice"));
}

TEST(Registry, CountsAndShowsInTheTextFormat) {
  Registry registry({&kEvents, &kSize, &kTime});
  registry.AddSource([](Samples* samples) { samples->Set(kSize, 3); });
  registry.Count(kEvents, {"a\"b\\\n"});
  registry.Count(kEvents, {"z"}, 0);
  registry.Count(kEvents, {"z"}, 2.5);
  registry.Observe(kTime, 1);
  registry.Observe(kTime, 4);
  registry.Observe(kTime, 60);
  EXPECT_EQ(registry.Text(), R"(# HELP lemo_things_total Things.
# TYPE lemo_things_total counter
lemo_things_total{kind="a\"b\\\n"} 1
lemo_things_total{kind="z"} 2.5
# HELP lemo_size_bytes Size.
# TYPE lemo_size_bytes gauge
lemo_size_bytes 3
# HELP lemo_wait_seconds Wait.
# TYPE lemo_wait_seconds histogram
lemo_wait_seconds_count 3
lemo_wait_seconds_sum 65
lemo_wait_seconds_bucket{le="1"} 1
lemo_wait_seconds_bucket{le="5"} 2
lemo_wait_seconds_bucket{le="+Inf"} 3
)");
}

TEST(Registry, ASourcesSeriesLastAsLongAsTheSourceNamesThem) {
  Registry registry({&kEvents, &kSize, &kTime});
  bool there = true;
  registry.AddSource([&there](Samples* samples) {
    if (there) samples->Set(kSize, 1);
  });
  EXPECT_THAT(registry.Text(), HasSubstr("lemo_size_bytes 1"));
  there = false;
  EXPECT_EQ(registry.Text(), "");
}

TEST(Registry, ANumberThatIsNoneIsInTheLastBucketOnly) {
  Registry registry({&kTime});
  registry.Observe(kTime, NAN);
  EXPECT_THAT(registry.Text(), HasSubstr("lemo_wait_seconds_bucket{le=\"5\"} 0\n"));
  EXPECT_THAT(registry.Text(), HasSubstr("lemo_wait_seconds_bucket{le=\"+Inf\"} 1\n"));
}

TEST(RegistryDeathTest, WhatIsNotDeclaredIsAMistake) {
  Registry registry({&kEvents});
  EXPECT_DEATH(registry.Observe(kTime, 1), "lemo_wait_seconds: is not declared");
  EXPECT_DEATH(registry.Count(kEvents), "wrong number of labels");
  registry.AddSource([](Samples* samples) { samples->Set(kSize, 3); });
  EXPECT_DEATH(registry.Collect(), "lemo_size_bytes: is not declared");
}

TEST(ProcessMetrics, TellOfThisProcess) {
  Registry registry(ProcessFamilies());
  registry.AddSource([](Samples* samples) { AddProcessSamples("1.2.3", samples); });
  const std::string text = registry.Text();
  EXPECT_THAT(text, HasSubstr("lemo_build_info{version=\"1.2.3\"} 1\n"));
  double start = 0, resident = 0, fds = 0;
  for (const auto& family : registry.Collect()) {
    const double value = family.metric.at(0).gauge.value;
    if (family.name == "process_start_time_seconds") start = value;
    if (family.name == "process_resident_memory_bytes") resident = value;
    if (family.name == "process_open_fds") fds = value;
  }
  EXPECT_NEAR(start, static_cast<double>(::time(nullptr)), 600);
  EXPECT_GT(resident, 1e6);
  EXPECT_LT(resident, 1e11);
  EXPECT_GE(fds, 3);
  EXPECT_LT(fds, 1000);
  EXPECT_EQ(registry.Collect().size(), ProcessFamilies().size());
}

}  // namespace
}  // namespace lemo::metrics
