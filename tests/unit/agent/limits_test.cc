#include "worker/agent/limits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/agent/scratch.h"

namespace lemo::agent {
namespace {

using testing::HasSubstr;

TEST(Limits, HoldOnlyWhatIsGiven) {
  const Usage much{.run_seconds = 1e9, .disk_bytes = 1 << 30, .host_memory_bytes = 1 << 30};
  EXPECT_FALSE(Exceeded({}, much));
  lemo::v1::LimitSpec limits;
  limits.set_disk_bytes(1 << 30);
  EXPECT_FALSE(Exceeded(limits, much));
  limits.set_disk_bytes((1 << 30) - 1);
  const auto failure = Exceeded(limits, much);
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->kind(), lemo::v1::Failure::LIMIT_EXCEEDED);
  EXPECT_THAT(failure->message(), HasSubstr("1073741824 bytes, 1073741823 are allowed"));
}

TEST(Limits, CountFilesOnDiskWithoutLinks) {
  const Scratch scratch;
  scratch.Write("a/b", std::string(100'000, 'x'));
  scratch.Write("outside/big", std::string(1'000'000, 'x'));
  std::filesystem::create_symlink(scratch.path() / "outside", scratch.path() / "a" / "folder");
  std::filesystem::create_symlink(scratch.path() / "outside/big", scratch.path() / "a" / "file");
  const int64_t bytes = DirectoryBytes(scratch.path() / "a");
  EXPECT_GE(bytes, 100'000);
  EXPECT_LT(bytes, 200'000);
  EXPECT_EQ(DirectoryBytes(scratch.path() / "none"), 0);
}

}  // namespace
}  // namespace lemo::agent
