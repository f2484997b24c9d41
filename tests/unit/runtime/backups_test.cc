// What a backup has, and what it leaves behind when it fails.
#include "coordinator/runtime/backups.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>

#include "absl/cleanup/cleanup.h"

#include "tests/support/file_size_limit.h"
#include "tests/unit/runtime/kept.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;
using lemo::v1::Job;
using testing::HasSubstr;

bool Always() { return true; }

class BackupsTest : public testing::Test {
 protected:
  BackupsTest() { Open(); }
  void Open() {
    auto backups = Backups::Open(kept_.directory / "", kept_.store.get(), kept_.artifacts.get(),
                                 kept_.checkpoints.get(), &janitor_);
    ASSERT_TRUE(backups.ok()) << backups.status();
    backups_ = *std::move(backups);
  }
  // A job with a result, one with a checkpoint, a file, a log.
  void Fill() {
    result_ = Publish(*kept_.artifacts, "a result");
    checkpoint_ = Publish(*kept_.checkpoints, "a checkpoint");
    file_ = Publish(*kept_.artifacts, "a file");
    Publish(*kept_.artifacts, "nameless");
    JobRecord done = SampleJob(1, Job::SUCCEEDED), running = SampleJob(2, Job::RUNNING);
    done.job.add_artifacts()->set_sha256(result_);
    running.job.mutable_checkpoint()->add_files()->set_sha256(checkpoint_);
    ASSERT_TRUE(Put(*kept_.store, done).ok() && Put(*kept_.store, running).ok());
    PutFile(*kept_.store, "files/f", file_);
    PutFile(*kept_.store, "files/same", file_);
    AppendLog(kept_.logs, JobName(1), "text");
  }
  std::string Folder() { return fs::path(kept_.directory / "backups").lexically_normal(); }
  std::vector<std::string> Left() {
    std::vector<std::string> names;
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(Folder(), error)) {
      names.push_back(entry.path().filename().string());
    }
    return names;
  }

  Kept kept_;
  Janitor janitor_{
      {}, kept_.store.get(), kept_.artifacts.get(), kept_.checkpoints.get(), &kept_.logs};
  std::unique_ptr<Backups> backups_;
  std::string result_, checkpoint_, file_;
};

TEST_F(BackupsTest, HasAllThatTheDatabaseNames) {
  Fill();
  const auto made = backups_->Create("one", absl::FromUnixSeconds(5), Always);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->name(), "backups/one");
  EXPECT_EQ(made->jobs(), 2);
  EXPECT_EQ(made->files(), 3);
  EXPECT_GT(made->bytes(), 24);
  EXPECT_EQ(made->create_time().seconds(), 5);
  const fs::path path = made->path();
  EXPECT_EQ(path, Folder() + "/one");
  const auto store = MustOpen((path / "lemo.db").string());
  EXPECT_EQ(store->GetJob(JobName(1))->artifacts(0).sha256(), result_);
  const auto artifacts = MustOpenArtifacts((path / "artifacts").string());
  EXPECT_TRUE(artifacts->Has(result_) && artifacts->Has(file_));
  EXPECT_FALSE(artifacts->Has(Sha256Hex("nameless")));
  EXPECT_TRUE(MustOpenArtifacts((path / "checkpoints").string())->Has(checkpoint_));
  LogFiles logs((path / "logs").string());
  EXPECT_EQ(*logs.Read(JobName(1), 1, 0, 0), "text");

  // Content is shared, and outlives its original.
  struct stat info;
  ASSERT_EQ(::stat(artifacts->LocalPath(result_)->c_str(), &info), 0);
  EXPECT_EQ(info.st_nlink, 2u);
  ASSERT_TRUE(kept_.artifacts->Remove(result_).ok());
  EXPECT_TRUE(artifacts->Read(result_, 0, [](int64_t, std::string_view) { return true; }).ok());
}

TEST_F(BackupsTest, ContentIsCopiedWhereItCannotBeLinked) {
  Fill();
  std::string other = "/dev/shm/backupsXXXXXX";
  struct stat here, there;
  if (::mkdtemp(other.data()) == nullptr) GTEST_SKIP() << "no second file system to write to";
  const absl::Cleanup remove = [&other] { fs::remove_all(other); };
  ASSERT_EQ(::stat((kept_.directory / "").c_str(), &here), 0);
  ASSERT_EQ(::stat(other.c_str(), &there), 0);
  if (here.st_dev == there.st_dev) GTEST_SKIP() << "one file system";
  fs::create_directory_symlink(other, Folder());
  const auto made = backups_->Create("one", absl::Now(), Always);
  ASSERT_TRUE(made.ok()) << made.status();
  const auto artifacts = MustOpenArtifacts(made->path() + "/artifacts");
  EXPECT_TRUE(artifacts->Read(file_, 0, [](int64_t, std::string_view) { return true; }).ok());
  struct stat info;
  ASSERT_EQ(::stat(artifacts->LocalPath(file_)->c_str(), &info), 0);
  EXPECT_EQ(info.st_nlink, 1u);
}

TEST_F(BackupsTest, ListsTheNewestFirst) {
  EXPECT_TRUE(backups_->List()->empty());
  for (int time : {2, 3, 1}) {
    ASSERT_TRUE(
        backups_->Create(absl::StrCat("b", time), absl::FromUnixSeconds(time), Always).ok());
  }
  ASSERT_TRUE(fs::create_directory(Folder() + "/of-somebody-else"));
  std::vector<std::string> names;
  const auto list = backups_->List();
  for (const auto& backup : *list) names.push_back(backup.name());
  EXPECT_THAT(names, testing::ElementsAre("backups/b3", "backups/b2", "backups/b1"));
  EXPECT_EQ((*list)[0].path(), Folder() + "/b3");
}

TEST_F(BackupsTest, TheTimeIsAName) {
  const auto made = backups_->Create("", absl::FromUnixMillis(86'400'123), Always);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->name(), "backups/19700102-000000.123");
  EXPECT_EQ(backups_->Create("", absl::FromUnixMillis(86'400'123), Always).status().code(),
            absl::StatusCode::kAlreadyExists);
}

TEST_F(BackupsTest, MissingContentIsNamedAndNothingStays) {
  Fill();
  ASSERT_TRUE(kept_.artifacts->Remove(result_).ok());
  const absl::Status status = backups_->Create("one", absl::Now(), Always).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("1 in all:\njobs/j1: SHA-256 " + result_));
  EXPECT_THAT(Left(), testing::IsEmpty());
}

TEST_F(BackupsTest, AFullDiskLeavesNothing) {
  Fill();
  {
    const FileSizeLimit limit(1000);
    EXPECT_EQ(backups_->Create("one", absl::Now(), Always).status().code(),
              absl::StatusCode::kResourceExhausted);
  }
  EXPECT_THAT(Left(), testing::IsEmpty());
  EXPECT_TRUE(backups_->Create("one", absl::Now(), Always).ok());
}

TEST_F(BackupsTest, OneThatIsGivenUpLeavesNothing) {
  Fill();
  int asked = 0;
  const auto some = [&asked] { return ++asked < 3; };
  EXPECT_EQ(backups_->Create("one", absl::Now(), some).status().code(),
            absl::StatusCode::kCancelled);
  EXPECT_THAT(Left(), testing::IsEmpty());
}

TEST_F(BackupsTest, OneAtATime) {
  Fill();
  absl::Status second;
  const auto meanwhile = [&] {
    std::thread([&] { second = backups_->Create("two", absl::Now(), Always).status(); }).join();
    return true;
  };
  ASSERT_TRUE(backups_->Create("one", absl::Now(), meanwhile).ok());
  EXPECT_EQ(second.code(), absl::StatusCode::kAborted);
}

TEST_F(BackupsTest, WhatACrashLeftIsRemovedAtTheStart) {
  fs::create_directories(Folder() + "/half.tmp/artifacts");
  ASSERT_TRUE(backups_->Create("whole", absl::Now(), Always).ok());
  Open();
  EXPECT_THAT(Left(), testing::ElementsAre("whole"));
}

// Content that loses its name while a backup is made is in the backup.
TEST_F(BackupsTest, WhatIsDroppedMeanwhileIsInIt) {
  Fill();
  bool first = true;
  const auto meanwhile = [&] {
    if (!std::exchange(first, false)) return true;
    EXPECT_TRUE(kept_.store->DeleteFile("files/f").ok() &&
                kept_.store->DeleteFile("files/same").ok());
    janitor_.DropArtifacts({file_});
    return true;
  };
  const auto made = backups_->Create("one", absl::Now(), meanwhile);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_TRUE(MustOpenArtifacts(made->path() + "/artifacts")->Has(file_));
  EXPECT_TRUE(Comes([&] { return !kept_.artifacts->Has(file_); }));
}

}  // namespace
}  // namespace lemo::coordinator
