#include "coordinator/store/backup.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "coordinator/store/store.h"

namespace lemo::coordinator {

namespace fs = std::filesystem;

absl::Status CheckIntegrity(SqlConnection& db) {
  LEMO_ASSIGN_OR_RETURN(const std::string found, db.QueryText("PRAGMA quick_check(1)"));
  if (found == "ok") return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat(db.path(), " is damaged: ", absl::StrReplaceAll(found, {{"\n", " "}})));
}

absl::Status WriteBackup(SqlConnection& db, const std::string& path) {
  std::error_code error;
  if (fs::equivalent(path, db.path(), error)) {
    return absl::FailedPreconditionError(
        absl::StrCat("the backup ", path, " would replace the database itself"));
  }
  if (fs::exists(path + "-wal", error)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the backup ", path, " would replace a database that is in use: there is ", path, "-wal"));
  }
  static std::atomic<int64_t> count = 0;
  const std::string beside = absl::StrCat(path, ".", ::getpid(), ".", ++count, ".tmp");
  fs::remove(beside, error);
  absl::Cleanup discard = [&beside] {
    std::error_code ignored;
    fs::remove(beside, ignored);
    fs::remove(beside + "-journal", ignored);
  };
  {
    LEMO_ASSIGN_OR_RETURN(SqlStatement copy, db.PrepareOnce("VACUUM INTO ?", {beside}));
    LEMO_RETURN_IF_ERROR(copy.Step().status());
  }
  {
    LEMO_ASSIGN_OR_RETURN(std::unique_ptr<SqlConnection> made, SqlConnection::Open(beside));
    LEMO_RETURN_IF_ERROR(CheckIntegrity(*made));
  }
  LEMO_RETURN_IF_ERROR(SyncPath(beside));
  if (::rename(beside.c_str(), path.c_str()) != 0) return ErrnoStatus(errno, "rename to", path);
  std::move(discard).Cancel();
  const fs::path directory = fs::path(path).parent_path();
  return SyncPath(directory.empty() ? fs::path(".") : directory);
}

absl::StatusOr<int64_t> VisitContents(
    const std::string& path, const std::function<absl::Status(const NamedContent&)>& visit) {
  LEMO_ASSIGN_OR_RETURN(const std::unique_ptr<SqlConnection> db, SqlConnection::Open(path));
  LEMO_ASSIGN_OR_RETURN(SqlStatement rows,
                        db->PrepareOnce("SELECT sha256, name, 0 FROM files UNION ALL "
                                        "SELECT contents.sha256, jobs.name, contents.checkpoint "
                                        "FROM contents JOIN jobs ON jobs.number = contents.job"));
  for (;;) {
    LEMO_ASSIGN_OR_RETURN(const bool row, rows.Step());
    if (!row) break;
    LEMO_RETURN_IF_ERROR(
        visit({std::string(rows.Bytes(0)), std::string(rows.Bytes(1)), rows.Int(2) != 0}));
  }
  return db->QueryInt("SELECT count(*) FROM jobs");
}

}  // namespace lemo::coordinator
