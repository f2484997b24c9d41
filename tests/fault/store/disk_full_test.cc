// The disk fills while the store writes. A limit on file sizes stands in for it (EFBIG for ENOSPC),
// which needs no mount.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <thread>

#include "common/files.h"
#include "tests/support/file_size_limit.h"
#include "tests/unit/store/sample_jobs.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using testing::HasSubstr;

JobRecord BigJob(int64_t number) {
  JobRecord record = SampleJob(number);
  record.job.mutable_failure()->set_log_tail(std::string(50'000, 'x'));
  return record;
}

TEST(DiskFull, ACallFailsWithThePathAndTheStoreGoesOn) {
  const ScratchDir scratch;
  const std::string path = scratch / "db";
  auto store = MustOpen(path);
  ASSERT_TRUE(Put(*store, SampleJob(1)).ok());
  int failures = 0;
  for (rlim_t more = 0;; more += 3001) {
    // The log file grows with every call that succeeds; a call that fails leaves its room for
    // reuse.
    const rlim_t limit = fs::file_size(path + "-wal") + more;
    const int64_t number = 1000 + failures;
    absl::Status status, second;
    {
      const FileSizeLimit limited(limit);
      std::thread other([&] { second = Put(*store, BigJob(number + 100'000)); });
      status = Put(*store, BigJob(number));
      other.join();
    }
    if (status.ok() && second.ok()) break;
    ASSERT_LT(++failures, 100);
    for (const auto& [result, job] : {std::pair(status, number), {second, number + 100'000}}) {
      EXPECT_EQ(store->GetJob(JobName(job)).ok(), result.ok()) << "whole or not at all";
      if (result.ok()) continue;
      ASSERT_EQ(result.code(), StatusCode::kResourceExhausted) << result;
      ASSERT_THAT(std::string(result.message()), HasSubstr(path));
    }
    ASSERT_TRUE(store->GetJob(JobName(1)).ok()) << "reads go on";
    ASSERT_TRUE(Put(*store, SampleJob(2 + failures)).ok()) << "with room again, so do writes";
  }
  EXPECT_GT(failures, 10);
  const size_t jobs = store->ActiveJobs()->size();
  store.reset();
  store = MustOpen(path);
  EXPECT_EQ(store->ActiveJobs()->size(), jobs);
}

TEST(DiskFull, ABackupFailsAndTheFormerStays) {
  const ScratchDir scratch;
  const auto store = MustOpen(scratch / "db");
  ASSERT_TRUE(Put(*store, SampleJob(1)).ok());
  ASSERT_TRUE(store->Backup(scratch / "copy").ok());
  const std::string before = *ReadFile(scratch / "copy");
  for (int i = 2; i < 20; ++i) ASSERT_TRUE(Put(*store, BigJob(i)).ok());
  {
    const FileSizeLimit limited(100'000);
    const absl::Status status = store->Backup(scratch / "copy");
    EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status;
  }
  EXPECT_EQ(*ReadFile(scratch / "copy"), before);
  for (const auto& entry : fs::directory_iterator(fs::path(scratch / "copy").parent_path())) {
    EXPECT_EQ(entry.path().string().find(".tmp"), std::string::npos) << entry.path();
  }
  EXPECT_TRUE(store->Backup(scratch / "copy").ok());
}

TEST(DiskFull, AnOpenFailsAndCanBeRepeated) {
  const ScratchDir scratch;
  int failures = 0;
  for (rlim_t limit = 0;; limit += 8192) {
    const std::string path = scratch / absl::StrCat("db", limit);
    absl::Status status;
    {
      const FileSizeLimit limited(limit);
      status = OpenSqliteStore(path).status();
    }
    if (status.ok()) break;
    ASSERT_LT(++failures, 100);
    EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << limit << status;
    EXPECT_TRUE(OpenSqliteStore(path).ok()) << limit;
  }
  EXPECT_GT(failures, 3);
}

}  // namespace
}  // namespace lemo::coordinator
