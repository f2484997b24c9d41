#include "worker/agent/devices.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <thread>

#include "tests/unit/agent/scratch.h"

namespace lemo::agent {
namespace {

using testing::ElementsAre;

TEST(Devices, ShareTheMemoryOfTheHost) {
  const auto devices = ListDevices(4, /*cuda=*/false, 1000);
  ASSERT_EQ(devices.size(), 4u);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(devices[i].info.index(), i);
    EXPECT_EQ(devices[i].info.kind(), lemo::v1::Device::CPU);
    EXPECT_EQ(devices[i].info.memory_bytes(), 250);
    EXPECT_TRUE(devices[i].info.shares_bases());
    EXPECT_EQ(devices[i].info.threads(), ThreadsOfCpu(4));
    EXPECT_EQ(devices[i].train_name, "cpu");
  }
  EXPECT_TRUE(ListDevices(0, false, 1000).empty());
  EXPECT_GT(HostMemoryBytes(), 0);
}

TEST(Devices, ShareTheCoresUnlessTheOperatorSaysOtherwise) {
  const char* const set = std::getenv("OMP_NUM_THREADS");
  const std::string before = set == nullptr ? "" : set;
  ::setenv("OMP_NUM_THREADS", "3", /*overwrite=*/1);
  EXPECT_EQ(ThreadsOfCpu(4), 3);
  ::unsetenv("OMP_NUM_THREADS");
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  EXPECT_EQ(ThreadsOfCpu(1), cores);
  EXPECT_EQ(ThreadsOfCpu(cores), 1);
  EXPECT_EQ(ThreadsOfCpu(2 * cores), 1);
  if (set != nullptr) ::setenv("OMP_NUM_THREADS", before.c_str(), /*overwrite=*/1);
}

TEST(Devices, ReadNvidiaSmi) {
  const auto devices =
      ParseNvidiaSmi("0, NVIDIA H100 80GB HBM3, 81559\n3, NVIDIA A100-SXM4-40GB, 40960\n", 2);
  ASSERT_TRUE(devices.ok()) << devices.status();
  ASSERT_EQ(devices->size(), 2u);
  EXPECT_EQ((*devices)[0].info.index(), 2);
  EXPECT_EQ((*devices)[0].info.model(), "NVIDIA H100 80GB HBM3");
  EXPECT_EQ((*devices)[0].info.memory_bytes(), int64_t{81559} << 20);
  EXPECT_EQ((*devices)[0].train_name, "cuda:0");
  EXPECT_FALSE((*devices)[0].info.shares_bases());
  EXPECT_EQ((*devices)[1].info.index(), 3);
  EXPECT_EQ((*devices)[1].train_name, "cuda:3");
  EXPECT_TRUE(ParseNvidiaSmi("", 0)->empty());
  EXPECT_FALSE(ParseNvidiaSmi("No devices were found\n", 0).ok());
  EXPECT_FALSE(ParseNvidiaSmi("0, A, [N/A]\n", 0).ok());
}

TEST(Models, AreDirectoriesWithAConfig) {
  const Scratch scratch;
  for (const char* name : {"one/config.json", "org/two/config.json", "org/two/inner/config.json",
                           "a/b/c/d/config.json", "three/weights"}) {
    scratch.Write(name, "{}");
  }
  EXPECT_THAT(
      FindModels({scratch.path(), scratch.path() / "one", scratch.path() / "none"}),
      ElementsAre((scratch.path() / "one").string(), (scratch.path() / "org/two").string()));
}

}  // namespace
}  // namespace lemo::agent
