#include "coordinator/runtime/gang_secret.h"

#include <unistd.h>

#include <filesystem>

#include "common/files.h"
#include "gtest/gtest.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;

TEST(GangSecret, IsMadeOnceAndForItsOwnerOnly) {
  const fs::path base =
      fs::path(testing::TempDir()) / ("lemo_gang_secret_" + std::to_string(::getpid()));
  fs::create_directories(base / "a");
  fs::create_directories(base / "b");
  const auto first = GangSecret(base / "a");
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->size(), 64u);
  EXPECT_EQ(*GangSecret(base / "a"), *first);
  EXPECT_NE(*GangSecret(base / "b"), *first);
  EXPECT_EQ(fs::status(base / "a" / "gang_secret").permissions(),
            fs::perms::owner_read | fs::perms::owner_write);
  ASSERT_TRUE(WriteFileAtomic(base / "b" / "gang_secret", "torn").ok());
  EXPECT_EQ(GangSecret(base / "b").status().code(), absl::StatusCode::kDataLoss);
  fs::remove_all(base);
}

}  // namespace
}  // namespace lemo::coordinator
