// Several threads: group commit, order of each caller, readers beside the writer.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <thread>

#include "absl/synchronization/notification.h"
#include "coordinator/store/commit_queue.h"
#include "tests/unit/store/sample_jobs.h"

namespace lemo::coordinator {
namespace {

constexpr int kThreads = 4;
constexpr int kCalls = 200;

TEST(Threads, EachCallersOrderIsKeptAndReadersSeeWholeCalls) {
  const ScratchDir scratch;
  const auto store = MustOpen(scratch / "db");
  std::atomic<int> running = kThreads;
  std::vector<std::thread> threads;
  for (int t = 1; t <= kThreads; ++t) {
    threads.emplace_back([&store, &running, t] {
      // Two jobs that always change together.
      JobRecord one = SampleJob(t), two = SampleJob(t + 100);
      for (int i = 1; i <= kCalls; ++i) {
        const auto first = NextEvent(&one, absl::StrCat(i)),
                   second = NextEvent(&two, absl::StrCat(i));
        const absl::Status status = store->Apply({Persist{one, {first}}, Persist{two, {second}}});
        EXPECT_TRUE(status.ok()) << status;
        EXPECT_EQ(store->GetJob(one.job.name())->last_sequence(), i) << "reads follow writes";
      }
      --running;
    });
  }
  int seen = 0;
  while (running > 0) {
    const auto active = store->ActiveJobs();
    ASSERT_TRUE(active.ok()) << active.status();
    std::map<int64_t, int64_t> last;
    for (const JobRecord& record : *active) last[record.number] = record.job.last_sequence();
    for (int t = 1; t <= kThreads; ++t) EXPECT_EQ(last[t], last[t + 100]) << "half a call";
    ++seen;
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(seen, 0);
  for (int t = 1; t <= kThreads; ++t) {
    const auto events = store->Events(JobName(t), 0, 10'000);
    ASSERT_EQ(events->size(), kCalls);
    for (int i = 0; i < kCalls; ++i) EXPECT_EQ((*events)[i].state().reason(), absl::StrCat(i + 1));
  }
}

class CommitQueueTest : public testing::Test {
 protected:
  CommitQueueTest() {
    auto writer = SqlConnection::Open(scratch_ / "db");
    EXPECT_TRUE((*writer)->Execute("PRAGMA journal_mode = WAL; CREATE TABLE t (a)").ok());
    queue_ = std::make_unique<CommitQueue>(*std::move(writer));
    reader_ = *SqlConnection::Open(scratch_ / "db");
  }

  absl::Status Insert(int64_t value) {
    return queue_->Commit([value](SqlConnection& db) {
      return db.Run("INSERT INTO t VALUES (?)", {value}).status();
    });
  }

  // Holds the writer's thread inside a change until all of `callers` are asleep in Commit or about
  // to be, then lets it go, so that they are likely to form one group.
  std::vector<absl::Status> RunTogether(std::vector<CommitQueue::Change> changes) {
    absl::Notification entered, leave;
    std::thread first([&] {
      EXPECT_TRUE(queue_
                      ->Commit([&](SqlConnection&) {
                        entered.Notify();
                        leave.WaitForNotification();
                        return absl::OkStatus();
                      })
                      .ok());
    });
    entered.WaitForNotification();
    std::vector<absl::Status> statuses(changes.size());
    std::vector<std::thread> threads;
    for (size_t i = 0; i < changes.size(); ++i) {
      threads.emplace_back([&, i] { statuses[i] = queue_->Commit(changes[i]); });
    }
    leave.Notify();
    first.join();
    for (std::thread& thread : threads) thread.join();
    return statuses;
  }

  ScratchDir scratch_;
  std::unique_ptr<CommitQueue> queue_;
  std::unique_ptr<SqlConnection> reader_;
};

TEST_F(CommitQueueTest, AChangeThatFailsIsUndoneAlone) {
  const auto good = [](SqlConnection& db) { return db.Run("INSERT INTO t VALUES (1)").status(); };
  const auto bad = [](SqlConnection& db) {
    EXPECT_TRUE(db.Run("INSERT INTO t VALUES (1000)").ok());
    return absl::AbortedError("no");
  };
  const auto wrong = [](SqlConnection& db) {
    return db.Run("INSERT INTO none VALUES (1)").status();
  };
  for (int round = 1; round <= 20; ++round) {
    const auto statuses = RunTogether({good, bad, good, wrong, good});
    EXPECT_TRUE(statuses[0].ok() && statuses[2].ok() && statuses[4].ok());
    EXPECT_EQ(statuses[1], absl::AbortedError("no"));
    EXPECT_EQ(statuses[3].code(), absl::StatusCode::kInternal);
    EXPECT_EQ(*reader_->QueryInt("SELECT sum(a) FROM t"), 3 * round);
  }
}

TEST_F(CommitQueueTest, WhatCannotBeCommittedFailsForAllAndIsForgotten) {
  ASSERT_TRUE(Insert(1).ok());
  // As SQLite does by itself when the disk is full: the transaction goes away under the change.
  const auto lose = [](SqlConnection& db) { return db.Execute("ROLLBACK"); };
  const auto insert = [](SqlConnection& db) { return db.Run("INSERT INTO t VALUES (9)").status(); };
  EXPECT_FALSE(queue_->Commit(lose).ok());
  int64_t expected = 1 + 2;
  for (int round = 0; round < 20; ++round) {
    const auto statuses = RunTogether({lose, insert});
    EXPECT_FALSE(statuses[0].ok());
    // In one group with the other, or after it.
    expected += statuses[1].ok() ? 9 : 0;
  }
  EXPECT_TRUE(Insert(2).ok()) << "the next one works";
  EXPECT_EQ(*reader_->QueryInt("SELECT sum(a) FROM t"), expected);
}

TEST_F(CommitQueueTest, AReaderDoesNotWaitForTheWriter) {
  ASSERT_TRUE(Insert(1).ok());
  absl::Notification wrote, read;
  std::thread writer([&] {
    EXPECT_TRUE(queue_
                    ->Commit([&](SqlConnection& db) {
                      const absl::Status status = db.Run("INSERT INTO t VALUES (5)").status();
                      wrote.Notify();
                      read.WaitForNotification();
                      return status;
                    })
                    .ok());
  });
  wrote.WaitForNotification();
  EXPECT_EQ(*reader_->QueryInt("SELECT sum(a) FROM t"), 1) << "what is committed, at once";
  read.Notify();
  writer.join();
  EXPECT_EQ(*reader_->QueryInt("SELECT sum(a) FROM t"), 6);
}

}  // namespace
}  // namespace lemo::coordinator
