// Gangs of several ranks, under the real mpirun.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <fstream>

#include "tests/integration/agent/harness.h"
#include "worker/agent/attempt_journal.h"
#include "worker/agent/gang_command.h"
#include "worker/agent/process_info.h"

namespace lemo::agent {
namespace {

namespace fs = std::filesystem;
using lemo::v1::AttemptEnded;
using lemo::v1::Failure;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr char kMark[] = "LEMO_GANG_RUN_TEST";

class GangRun : public AgentTest {
 protected:
  void SetUp() override {
    const auto command = MakeGangCommand({.ranks = 2, .directory = directory_ / "none"});
    ASSERT_TRUE(command.ok()) << command.status();
    RemoveScratch(directory_ / "none");
    // Everything that the agent starts has it, whatever becomes of parents and groups.
    value_ = std::to_string(::getpid()) + directory_.string();
    ::setenv(kMark, value_.c_str(), 1);
  }
  ~GangRun() override {
    ::unsetenv(kMark);
    RemoveScratch(JobDirectory("a"));  // of an agent that was killed and had no successor
  }

  AgentOptions Options() const override {
    AgentOptions options = AgentTest::Options();
    options.cpu_devices = 4;
    return options;
  }

  lemo::v1::AttemptId AssignGang(const std::string& id, int ranks, const std::string& script) {
    lemo::v1::Assignment assignment = MakeAssignment(id, script);
    assignment.set_ranks(ranks);
    assignment.clear_devices();
    for (int i = 0; i < ranks; ++i) assignment.add_devices(i);
    coordinator_.Assign(assignment);
    return assignment.id();
  }

  // Living processes that the agent has started: mpirun, what stands beside the ranks, ranks,
  // children of theirs, and a watchdog.
  std::vector<pid_t> Processes() const {
    std::vector<pid_t> found;
    const std::string mark = std::string(kMark) + "=" + value_;
    for (const auto& entry : fs::directory_iterator("/proc")) {
      const std::string name = entry.path().filename().string();
      if (name.find_first_not_of("0123456789") != std::string::npos) continue;
      std::ifstream file(entry.path() / "environ", std::ios::binary);
      for (std::string one; std::getline(file, one, '\0');) {
        if (one == mark && std::stoi(name) != worker_pid_) found.push_back(std::stoi(name));
      }
    }
    return found;
  }
  bool WaitUntilNoneIsLeft() const {
    for (int i = 0; i < 3000; ++i) {
      if (Processes().empty()) return true;
      ::poll(nullptr, 0, 10);
    }
    return false;
  }
  // That this process has and has not taken the ends of.
  static int Children() {
    int count = 0;
    for (const auto& task : fs::directory_iterator("/proc/self/task")) {
      std::ifstream file(task.path() / "children");
      for (pid_t pid; file >> pid;) ++count;
    }
    return count;
  }

  pid_t Leader(const std::string& id) const {
    const auto record = AttemptJournal::Read(JobDirectory(id));
    EXPECT_TRUE(record.ok()) << record.status();
    return record.ok() ? record->leader : -1;
  }
  // Waits until so many ranks have said who they are, and told the pid of rank 0.
  bool WaitForRanks(const std::string& job, int ranks) {
    return coordinator_.WaitFor({job, 1}, [&](const KnownAttempt& attempt) {
      int said = 0;
      for (const auto& [rank, log] : attempt.logs) said += log.find(" of ") != std::string::npos;
      return said == ranks && HasPhase("pid")(attempt);
    });
  }

  std::string value_;
};

TEST_F(GangRun, ThreeRanksTrainTogether) {
  StartAgent();
  const int children = Children();
  AssignGang("a", 3, "who\nrank 0 steps 1 5\nrank 2 stderr at the end\nrank 0 publish\nresult\n");
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  const KnownAttempt attempt = coordinator_.Get({"jobs/a", 1});
  EXPECT_EQ(attempt.ended->outcome(), AttemptEnded::SUCCEEDED) << attempt.ended->DebugString();
  EXPECT_THAT(attempt.faults, IsEmpty());
  EXPECT_EQ(attempt.events.size(), 6u);  // of rank 0 alone
  ASSERT_EQ(attempt.logs.size(), 3u);
  EXPECT_EQ(attempt.logs.at(0), "0 of 3 on cpu, events to a pipe\n");
  EXPECT_EQ(attempt.logs.at(1), "1 of 3 on cpu, events to a file\n");
  EXPECT_EQ(attempt.logs.at(2), "2 of 3 on cpu, events to a file\nat the end\n");
  EXPECT_TRUE(WaitUntilGone(JobDirectory("a")));
  EXPECT_TRUE(WaitUntilNoneIsLeft());
  EXPECT_EQ(Children(), children);
}

TEST_F(GangRun, TheRankThatFailedFirstIsNamed) {
  StartAgent();
  AssignGang("a", 3, "who\npid\nrank 1 stderr no memory left\nrank 1 exit 3\nchild\nstay\n");
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  const AttemptEnded ended = *coordinator_.Get({"jobs/a", 1}).ended;
  EXPECT_EQ(ended.outcome(), AttemptEnded::FAILED);
  EXPECT_EQ(ended.failure().kind(), Failure::OUT_OF_MEMORY);
  EXPECT_EQ(ended.failure().rank(), 1);
  EXPECT_EQ(ended.failure().message(), "rank 1 left with code 3 and gave no reason");
  EXPECT_THAT(ended.failure().log_tail(), HasSubstr("no memory left"));
  EXPECT_TRUE(WaitUntilNoneIsLeft());
}

TEST_F(GangRun, TheReasonOfRankZeroIsTold) {
  StartAgent();
  AssignGang("a", 2, "rank 0 error 2 fault\nstay\n");
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  const AttemptEnded ended = *coordinator_.Get({"jobs/a", 1}).ended;
  EXPECT_EQ(ended.failure().kind(), Failure::USER_ERROR);
  EXPECT_EQ(ended.failure().message(), "fault in files/a");
  EXPECT_EQ(ended.failure().rank(), 0);
}

TEST_F(GangRun, AStopReachesEveryRankOnce) {
  StartAgent();
  const lemo::v1::AttemptId id = AssignGang("a", 3, "pid\nwho\nhold\n");
  ASSERT_TRUE(WaitForRanks("jobs/a", 3));
  coordinator_.Signal(id, lemo::v1::AttemptSignal::CHECKPOINT_AND_STOP);
  coordinator_.Signal(id, lemo::v1::AttemptSignal::CHECKPOINT_AND_STOP);
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  const KnownAttempt attempt = coordinator_.Get({"jobs/a", 1});
  EXPECT_EQ(attempt.ended->outcome(), AttemptEnded::STOPPED) << attempt.ended->DebugString();
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_THAT(attempt.logs.at(rank), HasSubstr("asked once")) << rank;
  }
  EXPECT_TRUE(WaitUntilNoneIsLeft());
}

TEST_F(GangRun, AKillEndsAllAtOnce) {
  StartAgent();
  const int children = Children();
  const lemo::v1::AttemptId id = AssignGang("a", 3, "child\npid\nwho\nstay\n");
  ASSERT_TRUE(WaitForRanks("jobs/a", 3));
  EXPECT_GE(Processes().size(), 10u);  // mpirun, and of each rank three
  coordinator_.Signal(id, lemo::v1::AttemptSignal::KILL);
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  EXPECT_EQ(coordinator_.Get({"jobs/a", 1}).ended->outcome(), AttemptEnded::STOPPED);
  EXPECT_THAT(Processes(), IsEmpty());  // before the end was told
  EXPECT_EQ(Children(), children);
}

TEST_F(GangRun, NothingIsLeftOfAKilledMpirun) {
  StartAgent();
  const int children = Children();
  AssignGang("a", 3, "child\npid\nwho\nstay\n");
  ASSERT_TRUE(WaitForRanks("jobs/a", 3));
  ::kill(Leader("a"), SIGKILL);
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  const AttemptEnded ended = *coordinator_.Get({"jobs/a", 1}).ended;
  EXPECT_EQ(ended.failure().kind(), Failure::SYSTEM_ERROR);
  EXPECT_THAT(ended.failure().message(), HasSubstr("mpirun was ended by signal 9"));
  EXPECT_THAT(Processes(), IsEmpty());
  EXPECT_EQ(Children(), children);
  EXPECT_FALSE(fs::exists(ScratchOf(JobDirectory("a"))));
  EXPECT_FALSE(fs::exists(SharedMemoryOf(JobDirectory("a"))));
}

TEST_F(GangRun, NothingIsLeftOfAKilledRank) {
  StartAgent();
  AssignGang("a", 3, "child\npid\nwho\nrank 2 raise 9\nstay\n");
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  const AttemptEnded ended = *coordinator_.Get({"jobs/a", 1}).ended;
  EXPECT_EQ(ended.failure().kind(), Failure::SYSTEM_ERROR);
  EXPECT_EQ(ended.failure().rank(), 2);
  EXPECT_THAT(ended.failure().message(), HasSubstr("rank 2 was ended by SIGKILL"));
  EXPECT_THAT(Processes(), IsEmpty());
}

TEST_F(GangRun, ADeadAgentsRanksCheckpointAndNothingIsLeft) {
  StartWorker();
  AssignGang("a", 3, "pid\nwho\nhold\n");
  ASSERT_TRUE(WaitForRanks("jobs/a", 3));
  EndWorker(SIGKILL);
  EXPECT_TRUE(WaitUntilNoneIsLeft());
  EXPECT_TRUE(fs::exists(JobDirectory("a") / "out" / "checkpoint"));
}

TEST_F(GangRun, StubbornRanksOfADeadAgentAreEndedByTheNext) {
  coordinator_.Set([](auto* manners) { manners->lease_seconds = 2; });
  StartWorker();
  AssignGang("a", 2, "child\npid\nwho\nstay\n");
  ASSERT_TRUE(WaitForRanks("jobs/a", 2));
  EndWorker(SIGKILL);
  StartWorker();  // it waits for their checkpoint until the watchdog's deadline
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  const AttemptEnded ended = *coordinator_.Get({"jobs/a", 1}).ended;
  EXPECT_EQ(ended.failure().message(), "the agent was restarted");
  EndWorker(SIGTERM);
  EXPECT_TRUE(WaitUntilNoneIsLeft());
}

}  // namespace
}  // namespace lemo::agent
