#include "worker/agent/gang.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "common/files.h"
#include "tests/unit/agent/scratch.h"
#include "worker/agent/process_info.h"

namespace lemo::agent {
namespace {

constexpr int kPatienceMs = 30'000;

class GangTest : public testing::Test {
 protected:
  GangTest() { ::prctl(PR_SET_CHILD_SUBREAPER, 1); }

  // A shell whose output goes to `log` and which writes to descriptor 3.
  std::unique_ptr<Gang> Shell(const std::string& script) {
    auto gang = Gang::Start({.command = {"/bin/sh", "-c", script},
                             .environment = {"LEMO_TEST=set"},
                             .log = scratch_.path() / "log"});
    EXPECT_TRUE(gang.ok()) << gang.status();
    return gang.ok() ? *std::move(gang) : nullptr;
  }
  // What comes on descriptor 3 up to the end of a line, or the end.
  static std::string Line(const Gang& gang) {
    std::string line;
    for (char byte = 0; byte != '\n';) {
      pollfd poll{.fd = gang.events_fd(), .events = POLLIN};
      if (::poll(&poll, 1, kPatienceMs) != 1 || ::read(gang.events_fd(), &byte, 1) != 1) break;
      line += byte;
    }
    return line;
  }
  // Until all are gone.
  static int WaitFor(Gang& gang) {
    pollfd poll{.fd = gang.exit_fd(), .events = POLLIN};
    EXPECT_EQ(::poll(&poll, 1, kPatienceMs), 1);
    while (!gang.Poll(BootClock::now())) ::poll(nullptr, 0, 1);
    return gang.status().value_or(-1);
  }
  static bool Lives(pid_t pid) { return ::kill(pid, 0) == 0; }

  const Scratch scratch_;
};

TEST_F(GangTest, RunsTheProgram) {
  const auto gang = Shell("echo $LEMO_TEST >&3; echo out; echo err >&2; exit 7");
  EXPECT_EQ(Line(*gang), "set\n");
  const int status = WaitFor(*gang);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_EQ(scratch_.Read("log"), "out\nerr\n");
  EXPECT_EQ(gang->exit_fd(), -1);
}

TEST_F(GangTest, SaysWhyAProgramCannotStart) {
  const auto gang = Gang::Start({.command = {"/no/such/program"}, .log = scratch_.path() / "log"});
  ASSERT_FALSE(gang.ok());
  EXPECT_TRUE(absl::IsNotFound(gang.status())) << gang.status();
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1);  // no child is left
}

TEST_F(GangTest, IsKnownBeforeTheProgramRuns) {
  pid_t known = 0;
  const auto gang = Gang::Start(
      {.command = {"/bin/sh", "-c", "echo >&3"},
       .log = scratch_.path() / "log",
       .before_exec = [&known](pid_t leader) {
         known = leader;
         // It waits: what it would become is not to be seen yet.
         const std::string name = ReadFile("/proc/self/comm", 100).value_or("self");
         EXPECT_EQ(ReadFile("/proc/" + std::to_string(leader) + "/comm", 100).value_or(""), name);
         return absl::OkStatus();
       }});
  ASSERT_TRUE(gang.ok()) << gang.status();
  EXPECT_EQ(known, (*gang)->leader());
  EXPECT_EQ(Line(**gang), "\n");
}

TEST_F(GangTest, IsNotStartedWhenItCannotBeMadeKnownOrIsTooLate) {
  const std::string command = "echo ran > " + (scratch_.path() / "ran").string();
  const auto unknown =
      Gang::Start({.command = {"/bin/sh", "-c", command},
                   .log = scratch_.path() / "log",
                   .before_exec = [](pid_t) { return absl::ResourceExhaustedError("no room"); }});
  EXPECT_EQ(unknown.status(), absl::ResourceExhaustedError("no room"));
  const auto late = Gang::Start({.command = {"/bin/sh", "-c", command},
                                 .log = scratch_.path() / "log",
                                 .not_after = BootClock::now()});
  EXPECT_FALSE(late.ok());
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1);  // no child is left
  EXPECT_FALSE(std::filesystem::exists(scratch_.path() / "ran"));
}

TEST_F(GangTest, IsAProcessGroupWithNothingOfOursOpen) {
  const auto gang = Shell("ls /proc/self/fd | tr '\\n' ' ' >&3; echo >&3; read line < /dev/null");
  // The three, the events, and what ls itself opened; the exec's own was closed.
  EXPECT_EQ(Line(*gang), "0 1 2 3 4 \n");
  WaitFor(*gang);
}

TEST_F(GangTest, KillsGrandchildrenWhenTheLeaderHasEnded) {
  const auto gang = Shell("(trap '' TERM; sleep 1000) & echo $! >&3; exit 0");
  const pid_t grandchild = std::stoi(Line(*gang));
  EXPECT_TRUE(Lives(grandchild));
  EXPECT_EQ(WaitFor(*gang), 0);
  EXPECT_FALSE(Lives(grandchild));
}

TEST_F(GangTest, KillsAllWhenDestroyed) {
  auto gang = Shell("trap '' TERM; (trap '' TERM; sleep 1000) & echo $! >&3; sleep 1000");
  const pid_t grandchild = std::stoi(Line(*gang));
  const pid_t leader = gang->leader();
  gang = nullptr;
  EXPECT_FALSE(Lives(grandchild));
  EXPECT_FALSE(Lives(leader));
}

TEST_F(GangTest, FindsThoseThatLeftGroupAndSession) {
  const auto gang =
      Shell("setsid -f sh -c 'echo $$ >&3; exec 3>&-; trap \"\" TERM; sleep 1000'; exit 0");
  const pid_t runaway = std::stoi(Line(*gang));
  EXPECT_NE(::getsid(runaway), gang->leader());
  EXPECT_EQ(WaitFor(*gang), 0);
  EXPECT_FALSE(Lives(runaway));
}

TEST_F(GangTest, AnotherStopSignalIsForTheLeaderAlone) {
  auto gang = Gang::Start({.command = {"/bin/sh", "-c",
                                       "(trap 'echo no >&3' USR1; while :; do :; done) & "
                                       "trap 'echo asked >&3; exit 0' USR1; echo ready >&3; wait"},
                           .environment = {},
                           .log = scratch_.path() / "log",
                           .stop_signal = SIGUSR1});
  ASSERT_TRUE(gang.ok()) << gang.status();
  EXPECT_EQ(Line(**gang), "ready\n");
  (*gang)->AskToStop();
  EXPECT_EQ(Line(**gang), "asked\n");
  EXPECT_EQ(WaitFor(**gang), 0);
  EXPECT_EQ(Line(**gang), "");
}

TEST_F(GangTest, AsksOnce) {
  const auto gang = Shell(
      "trap 'echo asked >&3' TERM; trap 'echo last >&3' WINCH; echo ready >&3; while :; do :; "
      "done");
  EXPECT_EQ(Line(*gang), "ready\n");
  gang->AskToStop();
  EXPECT_EQ(Line(*gang), "asked\n");
  gang->AskToStop();
  ::kill(gang->leader(), SIGWINCH);  // a higher number: its trap runs after that of SIGTERM
  EXPECT_EQ(Line(*gang), "last\n");
  EXPECT_FALSE(gang->Poll(BootClock::now()));
  gang->Kill();
  const int status = WaitFor(*gang);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGKILL);
}

// The agent is another process here, since this one must go on.
TEST_F(GangTest, EndsWhenTheAgentIsKilled) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const pid_t agent = ::fork();
  if (agent == 0) {
    const auto gang = Shell("exec sleep 1000");
    const pid_t leader = gang->leader();
    [[maybe_unused]] const ssize_t wrote = ::write(ends[1], &leader, sizeof(leader));
    ::pause();
    ::_exit(0);
  }
  pid_t leader = 0;
  ASSERT_EQ(::read(ends[0], &leader, sizeof(leader)), static_cast<ssize_t>(sizeof(leader)));
  const int fd = OpenPidfd(leader);
  ASSERT_GE(fd, 0);
  ::kill(agent, SIGKILL);
  ::waitpid(agent, nullptr, 0);
  pollfd poll{.fd = fd, .events = POLLIN};
  EXPECT_EQ(::poll(&poll, 1, kPatienceMs), 1);
  ::close(fd);
  ::close(ends[0]);
  ::close(ends[1]);
  ::waitpid(leader, nullptr, 0);
}

TEST_F(GangTest, EndsALeftoverByItsNumberAndTime) {
  const auto gang = Shell("trap '' TERM; (sleep 1000) & echo $! >&3; sleep 1000");
  const pid_t grandchild = std::stoi(Line(*gang));
  const uint64_t ticks = StartTicks(gang->leader()).value_or(0);
  EXPECT_GT(ticks, 0u);
  EndLeftover(gang->leader(), ticks + 1, std::chrono::seconds(0));  // that was another process
  EXPECT_FALSE(gang->Poll(BootClock::now()));
  EndLeftover(gang->leader(), ticks, std::chrono::seconds(0));
  WaitFor(*gang);
  EXPECT_FALSE(Lives(grandchild));
  EXPECT_GT(GroupResidentBytes(::getpgrp()), 0);
}

}  // namespace
}  // namespace lemo::agent
