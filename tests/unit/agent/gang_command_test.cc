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
  ~GangCommandTest() override {
    ::setenv("PATH", path_.c_str(), 1);
    RemoveScratch(scratch_.path());
  }

  RanksToStart Ranks(int ranks) const {
    return {.ranks = ranks,
            .command = {"/bin/train", "run-{rank}.json"},
            .directory = scratch_.path(),
            .attempt = 7,
            .worker = "/bin/lemo-worker"};
  }

  NodeSettings Here() const {
    return {.directory = scratch_.path(),
            .worker = "/opt/lemo/lemo-worker",
            .train = "/opt/train",
            .interfaces = "eth7"};
  }
  // On the PATH, alone.
  void AddProgram(const std::string& name) {
    scratch_.Write("bin/" + name, "");
    std::filesystem::permissions(scratch_.path() / "bin" / name, std::filesystem::perms::owner_all);
    ::setenv("PATH", (scratch_.path() / "bin").c_str(), 1);
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

// The value of Open MPI's setting in a command; "none" when it is not there, and all of them if it
// is there more than once.
std::string Setting(const std::vector<std::string>& command, const std::string& name) {
  std::string value;
  for (size_t i = 2; i < command.size(); ++i) {
    if (command[i - 1] == name && command[i - 2].ends_with("-mca")) value += command[i];
  }
  return value.empty() ? "none" : value;
}

TEST_F(GangCommandTest, OverNodesMpirunCallsUsInPlaceOfSsh) {
  AddProgram("mpirun");
  RanksToStart ranks = Ranks(4);
  ranks.nodes = SeveralNodes{.ranks = {2, 1, 1}, .gang = "/job/gang.json", .here = Here()};
  const auto gang = MakeGangCommand(ranks);
  ASSERT_TRUE(gang.ok()) << gang.status();
  EXPECT_THAT(gang->command, IsSupersetOf({"--np", "4", "localhost:2,lemo-1:1,lemo-2:1", "slot"}));
  EXPECT_EQ(Setting(gang->command, "plm_rsh_agent"), "lemo-worker exec");
  EXPECT_EQ(Setting(gang->command, "oob_tcp_if_include"), "eth7");
  // The ranks' own are each node's to say.
  EXPECT_EQ(Setting(gang->command, "btl_tcp_if_include"), "none");
  const std::vector<std::string> tail(gang->command.end() - 7, gang->command.end());
  EXPECT_THAT(tail, ElementsAre("lemo-worker", "rank", "{directory}", "7", "--", "/bin/train",
                                "run-{rank}.json"));
  EXPECT_THAT(gang->environment,
              IsSupersetOf<std::string>({"LEMO_GANG_FILE=/job/gang.json",
                                         "LEMO_NODE_TRAIN=/opt/train", "LEMO_NODE_INTERFACES=eth7",
                                         "LEMO_NODE_DIRECTORY=" + scratch_.path().string()}));
  EXPECT_THAT(gang->environment, Contains(testing::StartsWith("PATH=/opt/lemo:")));
  EXPECT_EQ(gang->stop_signal, SIGUSR1);
}

TEST_F(GangCommandTest, ADaemonHasItsOwnNodesSettings) {
  AddProgram("orted");
  const auto gang = MakeDaemonCommand(
      Here(), {"-mca", "ess_base_jobid", "7", "--mca", "oob_tcp_if_include", "eth0", "-mca",
               "orte_tmpdir_base", "/lead", "--mca", "oob_tcp_dynamic_ipv4_ports", "1-9", "-mca",
               "plm_rsh_agent", "/lead/lemo-worker exec", "-mca", "plm", "rsh"});
  ASSERT_TRUE(gang.ok()) << gang.status();
  EXPECT_EQ(gang->command[0], scratch_.path() / "bin/orted");
  EXPECT_EQ(Setting(gang->command, "ess_base_jobid"), "7");
  EXPECT_EQ(Setting(gang->command, "plm"), "rsh");
  EXPECT_EQ(Setting(gang->command, "oob_tcp_if_include"), "eth7");
  EXPECT_EQ(Setting(gang->command, "oob_tcp_dynamic_ipv4_ports"), "none");
  EXPECT_EQ(Setting(gang->command, "orte_tmpdir_base"), "none");
  EXPECT_THAT(gang->environment, Contains("TMPDIR=" + ScratchOf(scratch_.path()).string()));
  EXPECT_EQ(gang->stop_signal, SIGKILL);
}

TEST_F(GangCommandTest, OpenMpiKeepsToThePortsOfItsNode) {
  AddProgram("orted");
  NodeSettings here = Here();
  here.first_port = 17300;
  here.last_port = 17399;
  const auto gang = MakeDaemonCommand(here, {});
  ASSERT_TRUE(gang.ok()) << gang.status();
  const int port = std::stoi(Setting(gang->command, "oob_tcp_dynamic_ipv4_ports"));
  EXPECT_GE(port, 17300);
  EXPECT_LE(port, 17399);
  EXPECT_THAT(gang->environment, Contains("LEMO_NODE_PORTS=17300-17399"));

  ::setenv("LEMO_NODE_DIRECTORY", scratch_.path().c_str(), 1);
  ::setenv("LEMO_NODE_INTERFACES", "eth7", 1);
  ::setenv("LEMO_NODE_PORTS", "17300-17399", 1);
  EXPECT_THAT(RankEnvironment(),
              IsSupersetOf<std::string>(
                  {"OMPI_MCA_btl_tcp_if_include=eth7", "NCCL_SOCKET_IFNAME==eth7",
                   "OMPI_MCA_btl_tcp_port_min_v4=17300", "OMPI_MCA_btl_tcp_port_range_v4=100"}));
  for (const char* name : {"LEMO_NODE_DIRECTORY", "LEMO_NODE_INTERFACES", "LEMO_NODE_PORTS"}) {
    ::unsetenv(name);
  }
  EXPECT_THAT(RankEnvironment(), IsEmpty());  // of a gang on one node
}

TEST_F(GangCommandTest, SharedMemoryIsANodesOwnAndGoes) {
  AddProgram("orted");
  ASSERT_TRUE(MakeDaemonCommand(Here(), {}).ok());
  const std::filesystem::path memory = SharedMemoryOf(scratch_.path());
  EXPECT_TRUE(std::filesystem::is_directory(memory));
  EXPECT_NE(SharedMemoryOf("/other"), memory);
  RemoveScratch(scratch_.path());
  EXPECT_FALSE(std::filesystem::exists(memory));
  EXPECT_FALSE(std::filesystem::exists(ScratchOf(scratch_.path())));
}

TEST_F(GangCommandTest, WithoutMpirunItSaysWhatToInstall) {
  ::setenv("PATH", scratch_.path().c_str(), 1);
  const auto gang = MakeGangCommand(Ranks(2));
  EXPECT_EQ(gang.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(gang.status().message()), HasSubstr("apt-get install openmpi-bin"));
}

}  // namespace
}  // namespace lemo::agent
