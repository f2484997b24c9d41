// The disk fills at every stage of a save. A limit on file sizes stands in for it (EFBIG for
// ENOSPC), which needs no mount.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/files.h"
#include "tests/support/file_size_limit.h"
#include "tests/support/test_checkpoint.h"

namespace lemo::train {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(DiskFull, TheSaveFailsWithThePathAndTheFormerStays) {
  const ScratchDir scratch;
  CheckpointStore store(scratch.path(), {.keep_last = 3});
  for (const int64_t step : {1, 2}) {
    TestCheckpoint checkpoint(step);
    ASSERT_TRUE(store.Save(checkpoint.contents()).ok());
  }
  int failures = 0;
  // Up to the largest file: the safetensors files fail first, then only the manifest.
  for (rlim_t bytes = 0; bytes < 4096; bytes += 37) {
    TestCheckpoint checkpoint(3);
    absl::StatusOr<std::filesystem::path> saved;
    {
      const FileSizeLimit limit(bytes);
      saved = store.Save(checkpoint.contents());
    }
    if (saved.ok()) break;
    ++failures;
    ASSERT_EQ(saved.status().code(), absl::StatusCode::kFailedPrecondition) << saved.status();
    ASSERT_THAT(std::string(saved.status().message()), HasSubstr(scratch.path().string()));
    ASSERT_THAT(Names(scratch.path()), ElementsAre("step-00000001", "step-00000002"));
    const auto loaded = store.LoadNewest(nullptr);
    ASSERT_TRUE(loaded.ok() && loaded->has_value());
    ASSERT_TRUE(TestCheckpoint(2).Equals(**loaded));
  }
  EXPECT_GT(failures, 10);
  const auto loaded = store.LoadNewest(nullptr);
  ASSERT_TRUE(loaded.ok() && loaded->has_value());
  EXPECT_TRUE(TestCheckpoint(3).Equals(**loaded)) << "with enough room the save succeeds";
}

TEST(DiskFull, ReplacingAStepFailsAndItStays) {
  const ScratchDir scratch;
  CheckpointStore store(scratch.path(), {});
  TestCheckpoint former(5, 1), replacement(5, 2);
  ASSERT_TRUE(store.Save(former.contents()).ok());
  {
    const FileSizeLimit limit(600);
    EXPECT_FALSE(store.Save(replacement.contents()).ok());
  }
  const auto loaded = store.LoadNewest(nullptr);
  ASSERT_TRUE(loaded.ok() && loaded->has_value());
  EXPECT_TRUE(former.Equals(**loaded));
}

}  // namespace
}  // namespace lemo::train
