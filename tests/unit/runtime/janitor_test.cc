// What is removed, what stays, and what may not race with it.
#include "coordinator/runtime/janitor.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "tests/unit/runtime/kept.h"

namespace lemo::coordinator {
namespace {

using lemo::v1::Job;

class JanitorTest : public testing::Test {
 protected:
  // A job that ended at second `end`, with an event and a log.
  void PutEnded(int64_t end) {
    JobRecord record = SampleJob(end, Job::SUCCEEDED);
    const auto event = NextEvent(&record, "the end");
    ASSERT_TRUE(Put(*kept_.store, record, {event}).ok());
    AppendLog(kept_.logs, JobName(end), "text");
  }
  bool HasEvents(int64_t job) { return kept_.store->Events(JobName(job), 0, 10).ok(); }
  bool HasLogs(int64_t job) { return !kept_.logs.Read(JobName(job), 1, 0, 0)->empty(); }

  Kept kept_;
};

TEST_F(JanitorTest, EventsAndLogsGoWhenTheirTimeIsOver) {
  JanitorOptions options;
  options.keep_events = absl::Seconds(100);
  options.keep_logs = absl::Seconds(200);
  Janitor janitor(options, kept_.store.get(), kept_.artifacts.get(), kept_.checkpoints.get(),
                  &kept_.logs);
  for (int64_t end : {10, 150, 250}) PutEnded(end);
  ASSERT_TRUE(Put(*kept_.store, SampleJob(1, Job::RUNNING)).ok());
  AppendLog(kept_.logs, JobName(1), "text");
  const auto swept = janitor.Sweep(absl::FromUnixSeconds(300));
  ASSERT_TRUE(swept.ok()) << swept.status();
  EXPECT_EQ(swept->events, 2);
  EXPECT_EQ(swept->logs, 1);
  EXPECT_FALSE(HasEvents(10) || HasEvents(150) || HasLogs(10));
  EXPECT_TRUE(HasEvents(250) && HasLogs(150) && HasLogs(250) && HasLogs(1));
  EXPECT_TRUE(kept_.store->GetJob(JobName(10)).ok()) << "the job itself stays";
  EXPECT_EQ(janitor.Sweep(absl::FromUnixSeconds(300))->events, 0);
}

TEST_F(JanitorTest, ForEverIsForEver) {
  JanitorOptions options;
  options.keep_events = options.keep_logs = absl::InfiniteDuration();
  Janitor janitor(options, kept_.store.get(), kept_.artifacts.get(), kept_.checkpoints.get(),
                  &kept_.logs);
  PutEnded(10);
  ASSERT_TRUE(janitor.Sweep(absl::Now() + absl::Hours(24 * 365 * 1000)).ok());
  EXPECT_TRUE(HasEvents(10) && HasLogs(10));
}

TEST_F(JanitorTest, ContentWithoutANameGoesAfterADay) {
  Janitor janitor({}, kept_.store.get(), kept_.artifacts.get(), kept_.checkpoints.get(),
                  &kept_.logs);
  const std::string nameless = Publish(*kept_.artifacts, "nameless");
  const std::string file = Publish(*kept_.artifacts, "a file");
  const std::string result = Publish(*kept_.artifacts, "a result");
  const std::string checkpoint = Publish(*kept_.checkpoints, "a checkpoint");
  const std::string former = Publish(*kept_.checkpoints, "a former one");
  PutFile(*kept_.store, "files/f", file);
  JobRecord done = SampleJob(1, Job::SUCCEEDED), running = SampleJob(2, Job::RUNNING);
  done.job.add_artifacts()->set_sha256(result);
  running.job.mutable_checkpoint()->add_files()->set_sha256(checkpoint);
  ASSERT_TRUE(Put(*kept_.store, done).ok() && Put(*kept_.store, running).ok());
  { ASSERT_TRUE((*kept_.artifacts->BeginUpload("u", 3, nameless))->Write(0, "a").ok()); }

  const auto young = janitor.Sweep(absl::Now() + absl::Hours(23));
  EXPECT_EQ(young->contents + young->uploads, 0) << "its name may be under way";
  const auto swept = janitor.Sweep(absl::Now() + absl::Hours(25));
  EXPECT_EQ(swept->contents, 2);
  EXPECT_EQ(swept->uploads, 1);
  EXPECT_FALSE(kept_.artifacts->Has(nameless) || kept_.checkpoints->Has(former));
  EXPECT_TRUE(kept_.artifacts->Has(file) && kept_.artifacts->Has(result) &&
              kept_.checkpoints->Has(checkpoint));
}

TEST_F(JanitorTest, DroppedContentGoesSoonUnlessItHasAnotherName) {
  Janitor janitor({}, kept_.store.get(), kept_.artifacts.get(), kept_.checkpoints.get(),
                  &kept_.logs);
  const std::string gone = Publish(*kept_.artifacts, "gone");
  const std::string shared = Publish(*kept_.artifacts, "shared");
  JobRecord done = SampleJob(1, Job::SUCCEEDED);
  done.job.add_artifacts()->set_sha256(shared);
  ASSERT_TRUE(Put(*kept_.store, done).ok());
  janitor.DropArtifacts({shared, gone});
  EXPECT_TRUE(Comes([&] { return !kept_.artifacts->Has(gone); }));
  EXPECT_TRUE(kept_.artifacts->Has(shared)) << "a job's result";
}

// Jobs of one spec and seed make the same checkpoints.
TEST_F(JanitorTest, ACheckpointThatAnotherJobNamesStays) {
  Janitor janitor({}, kept_.store.get(), kept_.artifacts.get(), kept_.checkpoints.get(),
                  &kept_.logs);
  const std::string own = Publish(*kept_.checkpoints, "own");
  const std::string same = Publish(*kept_.checkpoints, "same");
  JobRecord other = SampleJob(2, Job::RUNNING);
  other.job.mutable_checkpoint()->add_files()->set_sha256(same);
  ASSERT_TRUE(Put(*kept_.store, other).ok());
  janitor.DropCheckpoints({same, own});
  EXPECT_TRUE(Comes([&] { return !kept_.checkpoints->Has(own); }));
  EXPECT_TRUE(kept_.checkpoints->Has(same));
  other.job.clear_checkpoint();
  ASSERT_TRUE(Put(*kept_.store, other).ok());
  janitor.DropCheckpoints({same});
  EXPECT_TRUE(Comes([&] { return !kept_.checkpoints->Has(same); }));
}

TEST_F(JanitorTest, NothingIsRemovedWhileContentIsHeld) {
  Janitor janitor({}, kept_.store.get(), kept_.artifacts.get(), kept_.checkpoints.get(),
                  &kept_.logs);
  const std::string first = Publish(*kept_.artifacts, "first");
  const std::string second = Publish(*kept_.checkpoints, "second");
  {
    const auto hold = janitor.HoldContent();
    janitor.DropArtifacts({first});
    janitor.DropCheckpoints({second});
    // The thread has them by now, or will have: neither way they go.
    for (int i = 0; i < 1000; ++i) std::this_thread::yield();
    EXPECT_TRUE(kept_.artifacts->Has(first) && kept_.checkpoints->Has(second));
  }
  EXPECT_TRUE(
      Comes([&] { return !kept_.artifacts->Has(first) && !kept_.checkpoints->Has(second); }));
}

TEST_F(JanitorTest, ANameIsGivenOnlyToWhatIsThere) {
  Janitor janitor({}, kept_.store.get(), kept_.artifacts.get(), kept_.checkpoints.get(),
                  &kept_.logs);
  int named = 0;
  const auto name = [&] {
    ++named;
    return absl::OkStatus();
  };
  EXPECT_EQ(janitor.Name(Sha256Hex("nothing"), name).code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(janitor.Name(Publish(*kept_.artifacts, "something"), name).ok());
  EXPECT_EQ(named, 1);
}

// Files of one content come and go, and sweeps run: what has a name is never without content.
TEST_F(JanitorTest, NamesAndRemovalsDoNotRace) {
  Janitor janitor({}, kept_.store.get(), kept_.artifacts.get(), kept_.checkpoints.get(),
                  &kept_.logs);
  std::atomic<bool> stop = false;
  std::thread sweeper([&] {
    while (!stop) EXPECT_TRUE(janitor.Sweep(absl::Now()).ok());
  });
  int times_named = 0;
  for (int i = 0; i < 60; ++i) {
    const std::string sha256 = Publish(*kept_.artifacts, "content");
    // Of an upload long ago that is found again.
    timespec old[2] = {{1, 0}, {1, 0}};
    const absl::StatusOr<std::string> path = kept_.artifacts->LocalPath(sha256);
    if (path.ok()) ::utimensat(AT_FDCWD, path->c_str(), old, 0);
    const std::string name = absl::StrCat("files/", i);
    const absl::Status named = janitor.Name(sha256, [&] {
      PutFile(*kept_.store, name, sha256);
      return absl::OkStatus();
    });
    if (absl::IsAborted(named)) continue;  // what an uploader is told to repeat
    ++times_named;
    ASSERT_TRUE(kept_.artifacts->Has(sha256)) << i;
    ASSERT_TRUE(kept_.store->DeleteFile(name).ok());
    janitor.DropArtifacts({sha256});
  }
  stop = true;
  sweeper.join();
  EXPECT_GT(times_named, 0);
}

}  // namespace
}  // namespace lemo::coordinator
