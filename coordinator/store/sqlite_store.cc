// Opening, retention and backup.
#include "coordinator/store/sqlite_store.h"

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "coordinator/store/backup.h"
#include "coordinator/store/job_row.h"
#include "coordinator/store/schema.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;

constexpr int kReaders = 4;

// Checking the structure reads all of the file, some hundred megabytes a second when cached, and
// a start shall take no more than a tenth of a second. A file that was not closed well is worth
// more of it. Damage in a larger file shows when it is read, and in backups, which are checked.
constexpr uintmax_t kCheckedBytesMax = 4 << 20;
constexpr uintmax_t kCheckedBytesMaxAfterCrash = 32 << 20;

// Rows that one transaction drops, so that other writers wait for milliseconds.
constexpr int64_t kDropMax = 2'000;

uintmax_t SizeOf(const std::string& path) {
  std::error_code error;
  const uintmax_t size = fs::file_size(path, error);
  return error ? 0 : size;
}

// WAL: readers go on beside the writer. FULL: a commit is on the disk when it returns.
absl::Status Configure(SqlConnection& db) {
  LEMO_ASSIGN_OR_RETURN(const std::string mode, db.QueryText("PRAGMA journal_mode = WAL"));
  if (mode != "wal") {
    return absl::FailedPreconditionError(
        absl::StrCat(db.path(), ": no write-ahead log on this file system (mode ", mode, ")"));
  }
  // secure_delete: Debian's default writes zeros over what was freed, which doubles the log.
  return db.Execute(
      "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY; "
      "PRAGMA secure_delete = FAST; PRAGMA journal_size_limit = 67108864");
}

// Of the job that ended first, among those before `before_ns` that still have events. Adds to
// `dropped`; `more` becomes false when there is no such job.
absl::Status DropSomeEvents(SqlConnection& db, int64_t before_ns, int64_t* dropped, bool* more) {
  int64_t job = 0;
  {
    LEMO_ASSIGN_OR_RETURN(
        SqlStatement next,
        db.Prepare("SELECT number FROM jobs INDEXED BY jobs_with_events WHERE end_ns IS NOT NULL "
                   "AND retention < 2 AND end_ns < ? ORDER BY end_ns LIMIT 1",
                   {before_ns}));
    LEMO_ASSIGN_OR_RETURN(*more, next.Step());
    if (!*more) return absl::OkStatus();
    job = next.Int(0);
  }
  LEMO_ASSIGN_OR_RETURN(const int64_t deleted,
                        db.Run("DELETE FROM events WHERE job = ?1 AND sequence < "
                               "(SELECT min(sequence) FROM events WHERE job = ?1) + ?2",
                               {job, kDropMax}));
  *dropped += deleted;
  const int64_t retention = deleted < kDropMax ? 2 : 1;
  return db.Run("UPDATE jobs SET retention = ? WHERE number = ?", {retention, job}).status();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Store>> OpenSqliteStore(const std::string& path) {
  LEMO_ASSIGN_OR_RETURN(FileLock lock, FileLock::Acquire(path + ".lock"));
  // SQLite removes the log when the last connection closes.
  const bool crashed = SizeOf(path + "-wal") > 0;
  LEMO_ASSIGN_OR_RETURN(std::unique_ptr<SqlConnection> writer, SqlConnection::Open(path));
  LEMO_RETURN_IF_ERROR(CheckSchema(*writer, SchemaMigrations()));
  LEMO_RETURN_IF_ERROR(Configure(*writer));
  if (SizeOf(path) <= (crashed ? kCheckedBytesMaxAfterCrash : kCheckedBytesMax)) {
    LEMO_RETURN_IF_ERROR(CheckIntegrity(*writer));
  }
  LEMO_RETURN_IF_ERROR(Migrate(*writer, SchemaMigrations()));
  LEMO_RETURN_IF_ERROR(FillContents(*writer));
  const fs::path directory = fs::path(path).parent_path();
  LEMO_RETURN_IF_ERROR(SyncPath(directory.empty() ? fs::path(".") : directory));
  LEMO_ASSIGN_OR_RETURN(std::string token_key,
                        writer->QueryText("SELECT value FROM meta WHERE key = 'page_token_key'"));
  LEMO_ASSIGN_OR_RETURN(std::unique_ptr<ReaderPool> readers, ReaderPool::Open(path, kReaders));
  return std::make_unique<SqliteStore>(std::move(lock), path, std::move(token_key),
                                       std::move(writer), std::move(readers));
}

absl::StatusOr<int64_t> SqliteStore::Expire(absl::Time before) {
  const int64_t before_ns = ToNanoseconds(before);
  int64_t dropped = 0;
  bool more = true;
  while (more) {
    LEMO_RETURN_IF_ERROR(queue_.Commit(
        [&](SqlConnection& db) { return DropSomeEvents(db, before_ns, &dropped, &more); }));
  }
  return dropped;
}

absl::Status SqliteStore::Backup(const std::string& path) {
  // A connection of its own: a copy takes long, and the pool's are for short reads.
  LEMO_ASSIGN_OR_RETURN(std::unique_ptr<SqlConnection> db, SqlConnection::Open(path_));
  return WriteBackup(*db, path);
}

}  // namespace lemo::coordinator
