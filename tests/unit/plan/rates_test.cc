// The file of rates, which of them hold, and what the planner gets.
#include "worker/train/plan/rates.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "common/files.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr const char* kVersion = "1.2.3";

lemo::v1::DeviceRates Rates(const std::string& type, double products, int32_t threads = 2) {
  lemo::v1::DeviceRates rates;
  rates.set_type(type);
  rates.set_compute_type("float32");
  rates.set_threads(threads);
  rates.set_products(products);
  rates.set_attention(products / 2);
  return rates;
}

lemo::v1::DeviceRates Calibrated(const std::string& type, double products) {
  lemo::v1::DeviceRates rates = Rates(type, products);
  lemo::v1::Calibration& calibration = *rates.mutable_calibration();
  calibration.set_version(kVersion);
  calibration.set_host("h");
  calibration.mutable_time()->set_seconds(1'800'000'000);
  calibration.set_seconds(30.5);
  calibration.set_layer_seconds(1e-3);
  calibration.set_step_seconds(2e-3);
  lemo::v1::OperatorRates& of = *calibration.add_operators();
  of.set_name("products");
  for (const double size : {8.0, 512.0}) {
    lemo::v1::RatePoint& point = *of.add_points();
    point.set_size(size);
    point.set_rate(products * size / 512);
  }
  lemo::v1::LinkRate& link = *calibration.add_links();
  link.set_ranks(2);
  link.set_latency_seconds(1e-5);
  link.set_bytes_per_second(1e9);
  return rates;
}

class RatesFile : public testing::Test {
 protected:
  void SetUp() override { fs::remove_all(directory_); }
  void TearDown() override { fs::remove_all(directory_); }

  const fs::path directory_ =
      fs::path(testing::TempDir()) / ("lemo_rates_" + std::to_string(::getpid()));
  const fs::path file_ = directory_ / "below" / "rates.json";
};

TEST_F(RatesFile, KeepsOneOfEveryDevice) {
  EXPECT_TRUE(absl::IsNotFound(ReadRatesFile(file_).status()));
  const lemo::v1::DeviceRates cpu = Calibrated("cpu", 1e11);
  ASSERT_TRUE(PutRates(Rates("cpu", 1e9), file_).ok());
  ASSERT_TRUE(PutRates(Rates("cuda:0", 1e14), file_).ok());
  ASSERT_TRUE(PutRates(Rates("cpu", 1e10, /*threads=*/1), file_).ok());
  ASSERT_TRUE(PutRates(cpu, file_).ok());
  const absl::StatusOr<RatesList> read = ReadRatesFile(file_);
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->size(), 3);
  // All of it, digit for digit: an offer's id depends on it.
  const auto* found = FindRates(*read, Rates("cpu", 0), kVersion);
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(found->SerializeAsString(), cpu.SerializeAsString());
  EXPECT_EQ(RatesName(*found), RatesName(cpu));
  EXPECT_NE(RatesName(*found), RatesName(Calibrated("cpu", 1.1e11)));
}

TEST_F(RatesFile, ThatIsSomethingElseIsNotWrittenOver) {
  ASSERT_TRUE(MakeDirectories(file_.parent_path()).ok());
  ASSERT_TRUE(WriteFileAtomic(file_, "{\"rates\": 7}\n").ok());
  EXPECT_EQ(ReadRatesFile(file_).status().code(), absl::StatusCode::kInvalidArgument);
  const absl::Status put = PutRates(Rates("cpu", 1e9), file_);
  EXPECT_THAT(std::string(put.message()), HasSubstr("rates"));
  EXPECT_EQ(*ReadFile(file_, 100), "{\"rates\": 7}\n");
}

// As coordinators wrote it that timed two kernels.
TEST_F(RatesFile, OfAnOlderVersionIsRead) {
  ASSERT_TRUE(MakeDirectories(file_.parent_path()).ok());
  ASSERT_TRUE(WriteFileAtomic(file_, R"({"rates": [{"type": "cpu", "compute_type": "float32",
      "threads": 2, "products": 123456789012.5, "attention": 5e10}]})")
                  .ok());
  const absl::StatusOr<RatesList> read = ReadRatesFile(file_);
  ASSERT_TRUE(read.ok()) << read.status();
  const auto* found = FindRates(*read, Rates("cpu", 0), kVersion);
  ASSERT_NE(found, nullptr);
  const planner::DeviceRates device = PlannerRates(*found, /*own_memory=*/false);
  EXPECT_EQ(device.compute.products, 123456789012.5);
  EXPECT_TRUE(device.operators.empty());
  EXPECT_THAT(RatesInWords(*found), HasSubstr("two kernels"));
}

TEST(Rates, OfAnotherVersionDoNotHold) {
  RatesList list;
  *list.Add() = Calibrated("cpu", 1e11);
  EXPECT_NE(FindRates(list, Rates("cpu", 0), kVersion), nullptr);
  EXPECT_EQ(FindRates(list, Rates("cpu", 0), "1.2.4"), nullptr);
  EXPECT_EQ(FindRates(list, Rates("cpu", 0, /*threads=*/4), kVersion), nullptr);
  EXPECT_EQ(FindRates(list, Rates("cuda:0", 0), kVersion), nullptr);
}

// Two ranks of one thread are what becomes of a machine with two.
TEST(Rates, OfRanksThatShareAMachineAreFound) {
  RatesList list;
  *list.Add() = Calibrated("cpu", 1e11);
  lemo::v1::DeviceRates pair = Calibrated("cpu", 4e10);
  pair.set_ranks(2);
  *list.Add() = pair;  // of two threads each: of another machine
  pair.set_threads(1);
  *list.Add() = pair;
  const auto* alone = FindRates(list, Rates("cpu", 0), kVersion);
  ASSERT_NE(alone, nullptr);
  EXPECT_EQ(alone->products(), 1e11);
  const RatesList shared = SharedRates(list, *alone, kVersion);
  ASSERT_EQ(shared.size(), 1);
  EXPECT_EQ(shared[0].threads(), 1);
  EXPECT_TRUE(SharedRates(list, *alone, "1.2.4").empty());
  const planner::DeviceRates device = PlannerRates(*alone, /*own_memory=*/false, shared);
  ASSERT_EQ(device.shared.size(), 1u);
  EXPECT_EQ(device.shared[0].ranks, 2);
  EXPECT_EQ(device.shared[0].compute.products, 4e10);
  // An id tells whose rates it stands on.
  EXPECT_NE(device.measured, PlannerRates(*alone, /*own_memory=*/false).measured);
}

TEST(Rates, BecomeThePlanners) {
  lemo::v1::DeviceRates rates = Calibrated("cpu", 1e11);
  lemo::v1::Calibration& calibration = *rates.mutable_calibration();
  calibration.add_operators()->set_name("of a later version");
  // What is no rate prices nothing, whoever wrote it.
  lemo::v1::OperatorRates& bad = *calibration.add_operators();
  bad.set_name("norm");
  bad.add_points()->set_size(-1);
  calibration.add_links()->set_ranks(4);
  const planner::DeviceRates device = PlannerRates(rates, /*own_memory=*/false);
  EXPECT_EQ(device.type, "cpu");
  EXPECT_EQ(device.threads, 2);
  EXPECT_EQ(device.measured, RatesName(rates));
  EXPECT_NEAR(device.operators.At(planner::Operator::kProducts, 64) / 1.25e10, 1, 1e-9);
  EXPECT_EQ(device.operators.At(planner::Operator::kNorm, 64), 0);
  EXPECT_EQ(device.layer_seconds, 1e-3);
  EXPECT_EQ(device.step_seconds, 2e-3);
  ASSERT_EQ(device.links.size(), 1u);
  EXPECT_EQ(device.links[0].bytes_per_second, 1e9);
  EXPECT_THAT(RatesInWords(rates),
              testing::AllOf(HasSubstr("cpu, float32, 2 threads"), HasSubstr("on h at 2027-01-15"),
                             HasSubstr("by lemo 1.2.3")));
}

}  // namespace
}  // namespace lemo::train
