#include "worker/train/publish/output_dir.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/support/test_checkpoint.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

OutputClaim Claim(const std::string& learning_rate = "0.001") {
  return {.identity_json = "{\"train\": {\"learning_rate\": " + learning_rate +
                           ", \"steps\": 40}, \"data\": [{\"sha256\": \"aa\"}]}",
          .names_written = {"adapter", "report.json"}};
}

TEST(OutputDirectory, ANewOneIsMadeAndMarked) {
  const ScratchDir scratch;
  const fs::path dir = scratch.path() / "out" / "run";
  const auto output = OutputDirectory::Claim(dir, Claim());
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_FALSE(output->had_run());
  EXPECT_TRUE(output->locked());
  EXPECT_EQ(output->path(), dir);
  EXPECT_EQ(output->fingerprint().size(), 64u);
  EXPECT_THAT(Names(dir), ElementsAre(".lemo.lock", "run_identity.json"));
}

TEST(OutputDirectory, TheSameRunMayComeAgain) {
  const ScratchDir scratch;
  std::string fingerprint;
  {
    const auto first = OutputDirectory::Claim(scratch.path(), Claim("0.001"));
    ASSERT_TRUE(first.ok()) << first.status();
    fingerprint = first->fingerprint();
  }
  WriteText(scratch.path() / "adapter" / "file", "of the run");
  const auto second = OutputDirectory::Claim(scratch.path(), Claim("1e-3"));
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_TRUE(second->had_run());
  EXPECT_EQ(second->fingerprint(), fingerprint);
}

TEST(OutputDirectory, AnotherRunIsRefusedWithWhatDiffersAndNothingChanges) {
  const ScratchDir scratch;
  ASSERT_TRUE(OutputDirectory::Claim(scratch.path(), Claim()).ok());
  WriteText(scratch.path() / "adapter" / "file", "of the run");
  const std::string marker = ReadText(scratch.path() / "run_identity.json");
  OutputClaim other = Claim("0.002");
  const auto refused = OutputDirectory::Claim(scratch.path(), other);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.status().message()),
              AllOf(HasSubstr(scratch.path().string()),
                    HasSubstr("train.learning_rate is 0.001 there and 0.002 here"),
                    HasSubstr("choose another output.dir"), HasSubstr("--resume"),
                    testing::Not(HasSubstr("train.steps"))));
  EXPECT_EQ(ReadText(scratch.path() / "run_identity.json"), marker);
  other.identity_json = "{\"a\":1,\"b\":2,\"c\":3,\"d\":4,\"e\":5,\"f\":6,\"g\":7}";
  EXPECT_THAT(std::string(OutputDirectory::Claim(scratch.path(), other).status().message()),
              HasSubstr("more fields differ"));
}

TEST(OutputDirectory, ARunWithoutAResultGivesItsPlaceToAnother) {
  const ScratchDir scratch;
  ASSERT_TRUE(OutputDirectory::Claim(scratch.path(), Claim("0.001")).ok());
  const auto other = OutputDirectory::Claim(scratch.path(), Claim("0.002"));
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_FALSE(other->had_run());
  EXPECT_THAT(ReadText(scratch.path() / "run_identity.json"), HasSubstr("0.002"));
}

TEST(OutputDirectory, AWithdrawnClaimLeavesWhatWasThere) {
  const ScratchDir scratch;
  const fs::path made = scratch.path() / "made", filled = scratch.path() / "filled";
  for (const fs::path& dir : {made, filled, scratch.path()}) {
    auto output = OutputDirectory::Claim(dir, Claim());
    ASSERT_TRUE(output.ok()) << output.status();
    if (dir == filled) WriteText(filled / "notes", "a person's");
    output->Withdraw();
  }
  EXPECT_FALSE(fs::exists(made));
  EXPECT_THAT(Names(filled), ElementsAre("notes"));
  EXPECT_TRUE(fs::exists(scratch.path() / "run_identity.json"));
}

TEST(OutputDirectory, FilesInTheWayAreRefusedOthersAreNot) {
  const ScratchDir scratch;
  WriteText(scratch.path() / "run.json", "a person's spec");
  ASSERT_TRUE(OutputDirectory::Claim(scratch.path(), Claim()).ok());
  EXPECT_EQ(ReadText(scratch.path() / "run.json"), "a person's spec");

  const fs::path other = scratch.path() / "other";
  WriteText(other / "report.json", "a person's");
  const auto refused = OutputDirectory::Claim(other, Claim());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("report.json"));
  EXPECT_THAT(Names(other), ElementsAre("report.json")) << "a refusal writes nothing";
}

TEST(OutputDirectory, AMarkerThatIsNoneIsRefused) {
  for (const char* text : {"", "{", "[]", "{\"format\": \"other\"}"}) {
    const ScratchDir scratch;
    WriteText(scratch.path() / "run_identity.json", text);
    const auto refused = OutputDirectory::Claim(scratch.path(), Claim());
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr("run_identity.json"));
    EXPECT_EQ(ReadText(scratch.path() / "run_identity.json"), text);
  }
}

TEST(OutputDirectory, OneProcessAtATime) {
  const ScratchDir scratch;
  auto first = OutputDirectory::Claim(scratch.path(), Claim());
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = OutputDirectory::Claim(scratch.path(), Claim());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr(absl::StrCat("(pid ", ::getpid(), ")")));
  {
    const OutputDirectory moved = *std::move(first);
    EXPECT_FALSE(OutputDirectory::Claim(scratch.path(), Claim()).ok());
  }
  EXPECT_TRUE(OutputDirectory::Claim(scratch.path(), Claim()).ok());
}

TEST(OutputDirectory, TheLockOfADeadProcessIsFree) {
  const ScratchDir scratch;
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const auto output = OutputDirectory::Claim(scratch.path(), Claim());
    ::_exit(output.ok() ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_EQ(status, 0);
  const auto output = OutputDirectory::Claim(scratch.path(), Claim());
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_TRUE(output->had_run());
}

TEST(OutputDirectory, AFileInItsPlaceIsRefused) {
  const ScratchDir scratch;
  WriteText(scratch.path() / "out", "a person's");
  for (const char* name : {"out", "out/run"}) {
    const auto refused = OutputDirectory::Claim(scratch.path() / name, Claim());
    EXPECT_FALSE(refused.ok());
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr("out"));
  }
  EXPECT_EQ(ReadText(scratch.path() / "out"), "a person's");
}

TEST(OutputDirectory, NoPermissionIsSaid) {
  const ScratchDir scratch;
  const fs::path dir = scratch.path() / "locked";
  fs::create_directory(dir);
  fs::permissions(dir, fs::perms::owner_read | fs::perms::owner_exec | fs::perms::others_read |
                           fs::perms::others_exec);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    // Permissions do not bind root.
    if (::geteuid() == 0 && ::seteuid(65534) != 0) ::_exit(2);
    const auto existing = OutputDirectory::Claim(dir, Claim());
    const auto absent = OutputDirectory::Claim(dir / "new", Claim());
    ::_exit(absl::IsPermissionDenied(existing.status()) && absl::IsPermissionDenied(absent.status())
                ? 0
                : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST(OutputDirectory, AnIdentityThatIsNoObjectIsOurFault) {
  const ScratchDir scratch;
  EXPECT_EQ(OutputDirectory::Claim(scratch.path(), {.identity_json = "7"}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace lemo::train
