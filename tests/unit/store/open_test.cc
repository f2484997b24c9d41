// Opening: one owner, settings, migrations, what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "common/files.h"
#include "coordinator/store/schema.h"
#include "coordinator/store/sqlite.h"
#include "tests/unit/store/sample_jobs.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

absl::Status OpenStatus(const std::string& path) { return OpenSqliteStore(path).status(); }

TEST(Open, OnlyOneOwner) {
  const ScratchDir scratch;
  auto store = MustOpen(scratch / "db");
  const absl::Status status = OpenStatus(scratch / "db");
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("process ", ::getpid())));
  store.reset();
  EXPECT_TRUE(OpenStatus(scratch / "db").ok());
}

TEST(Open, ClosesWithoutALog) {
  const ScratchDir scratch;
  {
    const auto store = MustOpen(scratch / "db");
    ASSERT_TRUE(Put(*store, SampleJob(1)).ok());
    EXPECT_TRUE(fs::exists(scratch / "db-wal"));
  }
  EXPECT_FALSE(fs::exists(scratch / "db-wal"));
}

TEST(Open, RefusesANewerSchema) {
  const ScratchDir scratch;
  { const auto store = MustOpen(scratch / "db"); }
  ASSERT_TRUE((*SqlConnection::Open(scratch / "db"))->Execute("PRAGMA user_version = 99").ok());
  const absl::Status status = OpenStatus(scratch / "db");
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("has schema 99"));
}

TEST(Open, LeavesADatabaseOfAnotherProgramAlone) {
  const ScratchDir scratch;
  ASSERT_TRUE((*SqlConnection::Open(scratch / "db"))->Execute("CREATE TABLE t (a)").ok());
  const std::string before = *ReadFile(scratch / "db");
  const absl::Status status = OpenStatus(scratch / "db");
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("another program"));
  EXPECT_EQ(*ReadFile(scratch / "db"), before);
}

TEST(Open, DamageIsDataLoss) {
  const ScratchDir scratch;
  ASSERT_TRUE(WriteFileAtomic(scratch / "text", std::string(5000, 'x')).ok());
  EXPECT_EQ(OpenStatus(scratch / "text").code(), absl::StatusCode::kDataLoss);
  {
    const auto store = MustOpen(scratch / "db");
    for (int i = 1; i <= 50; ++i) ASSERT_TRUE(Put(*store, SampleJob(i)).ok());
  }
  {
    // Not the first page, which has the schema: the tables behind it.
    std::fstream file(scratch / "db", std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(4096);
    file << std::string(fs::file_size(scratch / "db") - 4096, '\x5a');
  }
  const absl::Status status = OpenStatus(scratch / "db");
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(scratch / "db"));
}

TEST(Open, AMissingDirectoryIsNamed) {
  const ScratchDir scratch;
  const absl::Status status = OpenStatus(scratch / "none/db");
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("none/db"));
}

TEST(Migrate, KeepsWhatIsThereAndACopyOfBefore) {
  const ScratchDir scratch;
  {
    const auto store = MustOpen(scratch / "db");
    ASSERT_TRUE(Put(*store, SampleJob(1)).ok());
  }
  const auto old_size = static_cast<int64_t>(SchemaMigrations().size());
  std::vector<std::string> migrations = SchemaMigrations();
  migrations.push_back("ALTER TABLE jobs ADD COLUMN color TEXT NOT NULL DEFAULT 'red'");
  migrations.push_back("UPDATE jobs SET color = 'blue'");
  const auto db = SqlConnection::Open(scratch / "db");
  ASSERT_TRUE(Migrate(**db, migrations).ok());
  EXPECT_EQ(*(*db)->QueryText("SELECT color FROM jobs"), "blue");
  EXPECT_EQ(*(*db)->QueryInt("PRAGMA user_version"), old_size + 2);
  const std::string copy = scratch / absl::StrCat("db.v", old_size, ".backup");
  ASSERT_TRUE(fs::exists(copy));
  ASSERT_TRUE(Migrate(**db, migrations).ok()) << "again, with nothing to do";
  EXPECT_EQ(MustOpen(copy)->GetJob(JobName(1))->name(), JobName(1));
}

TEST(Migrate, JobsOfTheFirstSchemaGoOn) {
  const ScratchDir scratch;
  {
    const auto db = SqlConnection::Open(scratch / "db");
    ASSERT_TRUE(Migrate(**db, {SchemaMigrations()[0]}).ok());
    ASSERT_TRUE((*db)
                    ->Execute("INSERT INTO jobs VALUES (1, 'jobs/j1', 3, 1, NULL, 0, 0, 'n', 0, 0, "
                              "0, 2.5, '/m', 'f', '', '', '', x'', x'')")
                    .ok());
  }
  const auto active = MustOpen(scratch / "db")->ActiveJobs();
  ASSERT_TRUE(active.ok()) << active.status();
  ASSERT_EQ(active->size(), 1);
  EXPECT_EQ(active->front().model_path, "/m");
  EXPECT_EQ(active->front().run_seconds_used, 2.5);
  EXPECT_TRUE(active->front().model_files.empty());
}

TEST(Migrate, ADatabaseOfTheFirstSchemaLearnsWhatItsJobsName) {
  const ScratchDir scratch;
  {
    const auto db = SqlConnection::Open(scratch / "db");
    ASSERT_TRUE(Migrate(**db, {SchemaMigrations()[0]}).ok());
    lemo::v1::Job job;
    job.set_name("jobs/old");
    job.set_state(lemo::v1::Job::SUCCEEDED);
    job.add_artifacts()->set_sha256("a");
    const std::string bytes = job.SerializeAsString();
    ASSERT_TRUE((*db)
                    ->Run("INSERT INTO jobs VALUES (1,'jobs/old',7,1,2,0,0,'',0,0,0,0,'','','','',"
                          "'',x'',?)",
                          {SqlBlob(bytes)})
                    .ok());
  }
  for (const char* time : {"first", "again"}) {
    const auto store = MustOpen(scratch / "db");
    EXPECT_TRUE(*store->HasContent("a")) << time;
    EXPECT_EQ(store->GetJob("jobs/old")->artifacts_size(), 1);
  }
}

TEST(Migrate, AFailedStepLeavesTheVersionBeforeIt) {
  const ScratchDir scratch;
  { const auto store = MustOpen(scratch / "db"); }
  const auto old_size = static_cast<int64_t>(SchemaMigrations().size());
  std::vector<std::string> migrations = SchemaMigrations();
  migrations.push_back("CREATE TABLE good (a)");
  migrations.push_back("CREATE TABLE half (a); INSERT INTO nowhere VALUES (1)");
  const auto db = SqlConnection::Open(scratch / "db");
  EXPECT_FALSE(Migrate(**db, migrations).ok());
  EXPECT_EQ(*(*db)->QueryInt("PRAGMA user_version"), old_size + 1);
  EXPECT_EQ(*(*db)->QueryInt("SELECT count(*) FROM sqlite_schema WHERE name IN ('good', 'half')"),
            1);
}

}  // namespace
}  // namespace lemo::coordinator
