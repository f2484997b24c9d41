#include "worker/agent/gang_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include "tests/unit/agent/scratch.h"

namespace lemo::agent {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::IsSupersetOf;

class GangCommandTest : public testing::Test {
 protected:
  GangCommandTest() : path_(::getenv("PATH")) {}
  ~GangCommandTest() override { ::setenv("PATH", path_.c_str(), 1); }

  RanksToStart Ranks(int ranks) const {
    return {.ranks = ranks,
            .command = {"/bin/train", "run-{rank}.json"},
            .directory = scratch_.path(),
            .attempt = 7,
            .worker = "/bin/lemo-worker"};
  }

  const Scratch scratch_;
  const std::string path_;
};

TEST_F(GangCommandTest, OneRankIsItself) {
  const auto gang = MakeGangCommand(Ranks(1));
  ASSERT_TRUE(gang.ok());
  EXPECT_THAT(gang->command, ElementsAre("/bin/train", "run-{rank}.json"));
  EXPECT_THAT(gang->environment, IsEmpty());
  EXPECT_EQ(gang->stop_signal, SIGTERM);
  EXPECT_FALSE(std::filesystem::exists(ScratchOf(scratch_.path())));
}

TEST_F(GangCommandTest, SeveralAreMpiruns) {
  scratch_.Write("bin/mpirun", "");
  std::filesystem::permissions(scratch_.path() / "bin/mpirun", std::filesystem::perms::owner_all);
  ::setenv("PATH",
           (scratch_.path().string() + "/none::" + scratch_.path().string() + "/bin").c_str(), 1);
  const auto gang = MakeGangCommand(Ranks(3));
  ASSERT_TRUE(gang.ok()) << gang.status();
  EXPECT_EQ(gang->command[0], scratch_.path() / "bin/mpirun");
  EXPECT_THAT(gang->command, IsSupersetOf({"--np", "3", "localhost:3", "isolated"}));
  const std::vector<std::string> tail(gang->command.end() - 7, gang->command.end());
  EXPECT_THAT(tail, ElementsAre("/bin/lemo-worker", "rank", scratch_.path().string(), "7", "--",
                                "/bin/train", "run-{rank}.json"));
  EXPECT_EQ(gang->stop_signal, SIGUSR1);
  EXPECT_THAT(gang->environment, ElementsAre("TMPDIR=" + ScratchOf(scratch_.path()).string()));
  EXPECT_TRUE(std::filesystem::is_directory(ScratchOf(scratch_.path())));
}

TEST_F(GangCommandTest, WithoutMpirunItSaysWhatToInstall) {
  ::setenv("PATH", scratch_.path().c_str(), 1);
  const auto gang = MakeGangCommand(Ranks(2));
  EXPECT_EQ(gang.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(gang.status().message()), HasSubstr("apt-get install openmpi-bin"));
}

}  // namespace
}  // namespace lemo::agent
