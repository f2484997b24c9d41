// What plans are told of workers' devices.
#include "coordinator/core/planned_devices.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace lemo::coordinator {
namespace {

using testing::IsEmpty;
using testing::SizeIs;

// A worker with one CPU; calibrated, if `products` are given.
lemo::v1::Hello Worker(const std::string& name, int threads, double products = 0) {
  lemo::v1::Hello hello;
  hello.set_worker("workers/" + name);
  hello.set_host("host-" + name);
  hello.set_version("1");
  lemo::v1::Device& device = *hello.add_devices();
  device.set_kind(lemo::v1::Device::CPU);
  device.set_threads(threads);
  if (products == 0) return hello;
  lemo::v1::DeviceRates& rates = *hello.add_rates();
  rates.set_type("cpu");
  rates.set_compute_type("float32");
  rates.set_threads(threads);
  rates.set_products(products);
  rates.mutable_calibration()->set_version("1");
  return hello;
}

TEST(PlannedDevices, AreNoneWhereNoWorkerSaysAnything) {
  EXPECT_EQ(PlannedDevices({}).device().most_threads(), 0);
  const lemo::v1::Hello silent;
  const lemo::v1::PlanOptions options = PlannedDevices({&silent});
  EXPECT_EQ(options.device().threads(), 0);
  EXPECT_THAT(options.device().rates(), IsEmpty());
}

TEST(PlannedDevices, HaveTheSlowestRatesAndTheMostThreads) {
  const lemo::v1::Hello fast = Worker("a", 8, 3e11), slow = Worker("b", 8, 2e11),
                        bare = Worker("c", 64);
  const lemo::v1::PlanOptions options = PlannedDevices({&fast, &slow, &bare});
  EXPECT_EQ(options.device().most_threads(), 64);
  EXPECT_EQ(options.device().threads(), 8);
  EXPECT_EQ(options.device().type(), "");
  EXPECT_THAT(options.devices(), IsEmpty());
  ASSERT_THAT(options.device().rates(), SizeIs(1));
  EXPECT_EQ(options.device().rates(0).products(), 2e11);
  EXPECT_EQ(options.device().source(),
            "workers/b (host-b), the slowest of 2 workers that are calibrated");
  EXPECT_EQ(PlannedDevices({&fast, &bare}).device().source(), "workers/a (host-a)");
}

// A rate in one type says nothing of one in another.
TEST(PlannedDevices, AreComparedInTheTypeThatMostWereMeasuredIn) {
  const lemo::v1::Hello a = Worker("a", 8, 3e11), b = Worker("b", 8, 4e11);
  lemo::v1::Hello other = Worker("c", 8, 1e11);
  other.mutable_rates(0)->set_compute_type("bfloat16");
  EXPECT_EQ(PlannedDevices({&other, &a, &b}).device().source(),
            "workers/a (host-a), the slowest of 2 workers that are calibrated");
}

// Such numbers are of something else than a rank alone on one of the worker's CPUs would be.
TEST(PlannedDevices, TakeNoRatesOfAnotherKind) {
  for (const auto spoil :
       {+[](lemo::v1::DeviceRates* rates) { rates->set_threads(3); },
        +[](lemo::v1::DeviceRates* rates) { rates->set_ranks(2); },
        +[](lemo::v1::DeviceRates* rates) { rates->set_type("cuda:0"); },
        +[](lemo::v1::DeviceRates* rates) { rates->clear_calibration(); },
        +[](lemo::v1::DeviceRates* rates) { rates->mutable_calibration()->set_version("0"); }}) {
    lemo::v1::Hello worker = Worker("a", 8, 3e11);
    spoil(worker.mutable_rates(0));
    const lemo::v1::PlanOptions options = PlannedDevices({&worker});
    EXPECT_EQ(options.device().threads(), 0) << worker.DebugString();
    EXPECT_THAT(options.device().rates(), IsEmpty());
    EXPECT_EQ(options.device().most_threads(), 8);
  }
  // Beside those of a rank alone they come along: gangs are priced by them.
  lemo::v1::Hello worker = Worker("a", 8, 3e11);
  *worker.add_rates() = worker.rates(0);
  worker.mutable_rates(1)->set_ranks(2);
  EXPECT_THAT(PlannedDevices({&worker}).device().rates(), SizeIs(2));
}

TEST(PlannedDevices, OfSeveralTypesEachHasItsOwnRates) {
  const lemo::v1::Hello fast = Worker("a", 8, 3e11), other = Worker("b", 8, 4e11),
                        slow = Worker("c", 2, 1e11), bare = Worker("d", 64);
  const std::vector<const lemo::v1::Hello*> workers = {&fast, &other, &slow, &bare};
  const lemo::v1::PlanOptions options = PlannedDevices(workers);
  EXPECT_FALSE(options.has_device());
  ASSERT_THAT(options.devices(), SizeIs(2));
  EXPECT_EQ(options.devices(0).type(), "2 threads");
  EXPECT_EQ(options.devices(0).most_threads(), 2);
  EXPECT_EQ(options.devices(0).rates(0).products(), 1e11);
  EXPECT_EQ(options.devices(1).type(), "8 threads");
  EXPECT_EQ(options.devices(1).rates(0).products(), 3e11);
  EXPECT_EQ(options.devices(1).source(),
            "workers/a (host-a), the slowest of 2 workers that are calibrated");
  ASSERT_THAT(options.notes(), SizeIs(1));
  EXPECT_THAT(options.notes(0), testing::HasSubstr("64 threads: no worker"));

  // Of one that is asked for.
  const lemo::v1::PlanOptions asked = PlannedDevices(workers, "2 threads");
  EXPECT_THAT(asked.devices(), IsEmpty());
  EXPECT_EQ(asked.device().most_threads(), 2);
  EXPECT_EQ(asked.device().rates(0).products(), 1e11);
  EXPECT_EQ(PlannedDevices(workers, "64 threads").device().threads(), 0);
  EXPECT_EQ(PlannedDevices(workers, "64 threads").device().most_threads(), 64);
}

TEST(PlannedDevices, ATypeIsTheModelAndTheThreadsOfACpu) {
  lemo::v1::Device device;
  device.set_kind(lemo::v1::Device::CUDA);
  device.set_model("NVIDIA H200");
  EXPECT_EQ(DeviceTypeOf(device), "NVIDIA H200");
  device.set_kind(lemo::v1::Device::CPU);
  device.set_model("Xeon");
  EXPECT_EQ(DeviceTypeOf(device), "Xeon");
  device.set_threads(1);
  EXPECT_EQ(DeviceTypeOf(device), "Xeon, 1 thread");
}

}  // namespace
}  // namespace lemo::coordinator
