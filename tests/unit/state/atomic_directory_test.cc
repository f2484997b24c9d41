#include "worker/train/state/atomic_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/files.h"
#include "tests/support/test_checkpoint.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::IsEmpty;

void Make(const fs::path& target, const std::string& text,
          AtomicDirectory::Replace replace = AtomicDirectory::Replace::kExchange) {
  absl::StatusOr<AtomicDirectory> directory = AtomicDirectory::Begin(target);
  ASSERT_TRUE(directory.ok()) << directory.status();
  ASSERT_TRUE(WriteFileAtomic(directory->path() / "text", text).ok());
  const absl::Status status = directory->Commit(replace);
  ASSERT_TRUE(status.ok()) << status;
}

class ReplaceTest : public testing::TestWithParam<AtomicDirectory::Replace> {};

TEST_P(ReplaceTest, TheLastCommitWinsAndLeavesNothingBeside) {
  const ScratchDir scratch;
  const fs::path target = scratch.path() / "parent" / "made";
  for (const char* text : {"one", "two", "three"}) {
    Make(target, text, GetParam());
    EXPECT_EQ(ReadText(target / "text"), text);
    EXPECT_THAT(Names(target.parent_path()), ElementsAre("made"));
  }
}

INSTANTIATE_TEST_SUITE_P(All, ReplaceTest,
                         testing::Values(AtomicDirectory::Replace::kExchange,
                                         AtomicDirectory::Replace::kMoveAside));

TEST(AtomicDirectory, WithoutCommitTheFormerStays) {
  const ScratchDir scratch;
  const fs::path target = scratch.path() / "made";
  Make(target, "former");
  {
    absl::StatusOr<AtomicDirectory> directory = AtomicDirectory::Begin(target);
    ASSERT_TRUE(directory.ok());
    WriteText(directory->path() / "text", "new");
  }
  EXPECT_EQ(ReadText(target / "text"), "former");
  EXPECT_THAT(Names(scratch.path()), ElementsAre("made"));
}

TEST(AtomicDirectory, BeginRemovesWhatAKilledProcessLeft) {
  const ScratchDir scratch;
  const fs::path target = scratch.path() / "made";
  WriteText(AtomicDirectory::TemporaryPath(target) / "stale", "x");
  Make(target, "new");
  EXPECT_THAT(Names(target), ElementsAre("text"));
}

TEST(AtomicDirectory, RecoverPutsTheFormerBackOnlyWhereTheTargetIsMissing) {
  const ScratchDir scratch;
  const fs::path target = scratch.path() / "made";
  Make(target, "former");
  fs::rename(target, AtomicDirectory::FormerPath(target));
  ASSERT_TRUE(AtomicDirectory::Recover(target).ok());
  EXPECT_EQ(ReadText(target / "text"), "former");

  WriteText(AtomicDirectory::FormerPath(target) / "text", "older");
  ASSERT_TRUE(AtomicDirectory::Recover(target).ok());
  EXPECT_EQ(ReadText(target / "text"), "former");
  EXPECT_THAT(Names(scratch.path()), ElementsAre("made"));
}

TEST(AtomicDirectory, RemoveTakesAllOfItAway) {
  const ScratchDir scratch;
  const fs::path target = scratch.path() / "made";
  Make(target, "text");
  EXPECT_TRUE(AtomicDirectory::Remove(target).ok());
  EXPECT_TRUE(AtomicDirectory::Remove(target).ok());
  EXPECT_THAT(Names(scratch.path()), IsEmpty());
}

TEST(AtomicDirectory, AFileInTheWayIsAnErrorAndStays) {
  const ScratchDir scratch;
  WriteText(scratch.path() / "made", "mine");
  const auto directory = AtomicDirectory::Begin(scratch.path() / "made");
  EXPECT_EQ(directory.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReadText(scratch.path() / "made"), "mine");
}

TEST(AtomicDirectory, ATrailingSlashNamesTheSameDirectory) {
  const ScratchDir scratch;
  Make(scratch.path() / "made/", "text");
  EXPECT_THAT(Names(scratch.path()), ElementsAre("made"));
}

}  // namespace
}  // namespace lemo::train
