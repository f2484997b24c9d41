#include "worker/agent/attempt_journal.h"

#include <gtest/gtest.h>

#include "tests/unit/agent/scratch.h"
#include "worker/agent/gang_command.h"
#include "worker/agent/process_info.h"

namespace lemo::agent {
namespace {

namespace fs = std::filesystem;

TEST(AttemptJournal, ReadsWhatItWrote) {
  const Scratch scratch;
  AttemptRecord record;
  record.id.set_job("jobs/a");
  record.id.set_attempt(3);
  record.ranks = 4;
  record.leader = 77;
  record.boot_id = BootId();
  ASSERT_TRUE(AttemptJournal(scratch.path(), 3).Write(record).ok());
  const auto read = AttemptJournal::Read(scratch.path());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->id.job(), "jobs/a");
  EXPECT_EQ(read->id.attempt(), 3);
  EXPECT_EQ(read->ranks, 4);
  EXPECT_EQ(read->leader, 77);
}

TEST(AttemptJournal, OneOfAnOlderAgentHasOneRank) {
  const Scratch scratch;
  scratch.Write(
      "attempt.json",
      R"({"job": "jobs/a", "attempt": 1, "leader": 5, "start_ticks": 9, "boot_id": "other",
                    "start_unix_seconds": 1, "run_seconds": 2, "succeeded": false})");
  const auto read = AttemptJournal::Read(scratch.path());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->ranks, 1);
  EXPECT_EQ(read->leader, 0) << "of another boot";
}

TEST(AttemptJournal, RemovesItsOwnFilesAndNoOthers) {
  const Scratch scratch;
  const AttemptJournal journal(scratch.path() / "job", 2);
  for (const fs::path& path :
       {journal.spool(), journal.log(0), journal.log(2), journal.rank_end(1), journal.mpirun_log(),
        journal.spec(), journal.spec("0"), ScratchOf(journal.directory()) / "x/y",
        journal.directory() / "attempt.json", journal.out() / "checkpoint",
        AttemptJournal(scratch.path() / "job", 12).log(0)}) {
    scratch.Write(path.lexically_relative(scratch.path()).string(), "x");
  }
  journal.Remove();
  EXPECT_TRUE(fs::exists(journal.out() / "checkpoint"));
  EXPECT_TRUE(fs::exists(AttemptJournal(scratch.path() / "job", 12).log(0)));
  EXPECT_EQ(std::distance(fs::directory_iterator(journal.directory()), fs::directory_iterator()),
            2);
}

}  // namespace
}  // namespace lemo::agent
