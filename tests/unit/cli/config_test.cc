#include "cli/config.h"

#include <cstdlib>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lemo::cli {
namespace {

using ::testing::HasSubstr;

class FindCoordinatorTest : public testing::Test {
 protected:
  void SetUp() override { unsetenv("LEMO_COORDINATOR"); }
  void TearDown() override { unsetenv("LEMO_COORDINATOR"); }

  std::string File(const std::string& text) {
    const std::string path = testing::TempDir() + "/find_coordinator_config.yaml";
    std::ofstream(path) << text;
    return path;
  }
};

TEST_F(FindCoordinatorTest, FlagThenEnvironmentThenFileThenDefault) {
  const std::string file = File("coordinator: file:3\n");
  setenv("LEMO_COORDINATOR", "environment:2", 1);
  EXPECT_EQ(FindCoordinator("flag:1", file)->address, "flag:1");
  EXPECT_EQ(FindCoordinator("", file)->address, "environment:2");
  unsetenv("LEMO_COORDINATOR");
  EXPECT_EQ(FindCoordinator("", file)->address, "file:3");
  EXPECT_EQ(FindCoordinator("", file)->source, file);
  EXPECT_EQ(FindCoordinator("", "/nowhere/config.yaml")->address, kDefaultCoordinator);
}

TEST_F(FindCoordinatorTest, RefusesWhatIsNoAddress) {
  for (const char* address : {"host", "host:", "host:0", "host:65536", ":1", "host:x"}) {
    EXPECT_EQ(FindCoordinator(address, "").status().code(), absl::StatusCode::kInvalidArgument)
        << address;
  }
}

TEST_F(FindCoordinatorTest, NamesTheFaultsOfTheFile) {
  const std::string file = File("\ncoordinater: a:1\ncoordinator: [1]\n");
  const absl::Status status = FindCoordinator("", file).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr(file + ":2: unknown key coordinater"));
  EXPECT_THAT(std::string(status.message()), HasSubstr(file + ":3: coordinator: expected"));
}

}  // namespace
}  // namespace lemo::cli
