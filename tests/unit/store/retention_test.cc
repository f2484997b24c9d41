// Expire and Backup.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/files.h"
#include "tests/unit/store/sample_jobs.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;
using lemo::v1::Job;
using testing::HasSubstr;

// A job with that many events that is in `state`.
void PutWithEvents(Store& store, int64_t number, Job::State state, int events) {
  JobRecord record = SampleJob(number, state);
  std::vector<lemo::v1::JobEvent> all;
  for (int i = 0; i < events; ++i) all.push_back(NextEvent(&record, absl::StrCat("e", i)));
  ASSERT_TRUE(Put(store, record, all).ok());
}

TEST(Expire, DropsEventsOfJobsThatEndedBefore) {
  const ScratchDir scratch;
  const auto store = MustOpen(scratch / "db");
  PutWithEvents(*store, 1, Job::SUCCEEDED, 3);
  PutWithEvents(*store, 2, Job::RUNNING, 3);
  PutWithEvents(*store, 3, Job::FAILED, 5000);  // more than one transaction drops
  PutWithEvents(*store, 4, Job::CANCELLED, 3);  // ends at second 4
  PutWithEvents(*store, 5, Job::CANCELLED, 0);
  const auto counts = [&] {
    std::vector<size_t> sizes;
    for (int i = 1; i <= 4; ++i) {
      const auto events = store->Events(JobName(i), 0, 10'000);
      EXPECT_EQ(events.ok(), !absl::IsOutOfRange(events.status())) << events.status();
      sizes.push_back(events.ok() ? events->size() : 0);
    }
    return sizes;
  };
  EXPECT_THAT(counts(), testing::ElementsAre(3, 3, 5000, 3));
  EXPECT_EQ(*store->Expire(absl::FromUnixSeconds(4)), 5003);
  EXPECT_THAT(counts(), testing::ElementsAre(0, 3, 0, 3)) << "exclusive";
  EXPECT_EQ(*store->Expire(absl::FromUnixSeconds(4)), 0);
  EXPECT_EQ(*store->Expire(absl::InfiniteFuture()), 3);
  EXPECT_EQ(store->ListJobs({}, true, 10, "")->jobs.size(), 5) << "the jobs stay";
  const absl::Status gone = store->Events(JobName(1), 2, 10).status();
  EXPECT_EQ(gone.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(gone.message()), HasSubstr("jobs/j1 ended long ago"));
  EXPECT_TRUE(store->Events(JobName(1), 3, 10)->empty()) << "who has seen all misses none";
  EXPECT_TRUE(store->Events(JobName(5), 0, 10)->empty()) << "there never was one";
}

TEST(Backup, IsAConsistentCopyWhileRunning) {
  const ScratchDir scratch;
  const auto store = MustOpen(scratch / "db");
  PutWithEvents(*store, 1, Job::RUNNING, 3);
  ASSERT_TRUE(WriteFileAtomic(scratch / "copy", "what was there").ok());
  ASSERT_TRUE(store->Backup(scratch / "copy").ok());
  PutWithEvents(*store, 2, Job::RUNNING, 1);
  const auto copy = MustOpen(scratch / "copy");
  EXPECT_EQ(copy->ActiveJobs()->size(), 1);
  EXPECT_EQ(copy->Events(JobName(1), 0, 10)->size(), 3);
  EXPECT_TRUE(Put(*copy, SampleJob(2)).ok()) << "the copy can be worked with";
  for (const auto& entry : fs::directory_iterator(fs::path(scratch / "db").parent_path())) {
    EXPECT_EQ(entry.path().string().find(".tmp"), std::string::npos) << entry.path();
  }
}

TEST(Backup, TellsWhatContentItNames) {
  const ScratchDir scratch;
  {
    const auto store = MustOpen(scratch / "db");
    JobRecord done = SampleJob(1, Job::SUCCEEDED), running = SampleJob(2, Job::RUNNING);
    done.job.add_artifacts()->set_sha256("a");
    done.job.add_artifacts()->set_sha256("b");
    running.job.mutable_checkpoint()->add_files()->set_sha256("c");
    ASSERT_TRUE(Put(*store, done).ok() && Put(*store, running).ok());
    lemo::v1::File file;
    file.set_name("files/f");
    file.set_sha256("a");
    ASSERT_TRUE(store->CreateFile(file, "").ok());
    ASSERT_TRUE(store->Backup(scratch / "copy").ok());
    // What came later is not in it.
    running.job.mutable_checkpoint()->mutable_files(0)->set_sha256("d");
    ASSERT_TRUE(Put(*store, running).ok());
    EXPECT_TRUE(*store->HasContent("d", true));
    EXPECT_FALSE(*store->HasContent("c", true));
    EXPECT_FALSE(*store->HasContent("d", false)) << "a checkpoint's is kept apart";
    EXPECT_TRUE(*store->HasContent("b"));
  }
  std::vector<std::string> found;
  const auto jobs = VisitContents(scratch / "copy", [&](const NamedContent& content) {
    found.push_back(
        absl::StrCat(content.owner, " ", content.sha256, content.checkpoint ? " c" : ""));
    return absl::OkStatus();
  });
  EXPECT_EQ(*jobs, 2);
  EXPECT_THAT(found,
              testing::UnorderedElementsAre("jobs/j1 a", "jobs/j1 b", "jobs/j2 c c", "files/f a"));
}

TEST(Backup, RefusesToReplaceADatabaseInUse) {
  const ScratchDir scratch;
  const auto store = MustOpen(scratch / "db");
  const auto other = MustOpen(scratch / "other");
  ASSERT_TRUE(Put(*store, SampleJob(1)).ok() && Put(*other, SampleJob(2)).ok());
  for (const char* path : {"db", "./db", "other"}) {
    const absl::Status status = store->Backup(scratch / path);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << path << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("would replace"));
  }
  EXPECT_TRUE(store->GetJob(JobName(1)).ok() && other->GetJob(JobName(2)).ok());
  EXPECT_FALSE(store->Backup(scratch / "none/copy").ok());
}

}  // namespace
}  // namespace lemo::coordinator
