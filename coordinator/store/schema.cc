#include "coordinator/store/schema.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/store/backup.h"
#include "lemo/v1/job.pb.h"

namespace lemo::coordinator {
namespace {

// "LeMo", in the header of the file.
constexpr int64_t kApplicationId = 0x4c654d6f;

// Times are nanoseconds since 1970; messages are in their binary form.
//
// jobs.state is a Job.State. `jobs_by_state` also finds the jobs that have not ended, which have
// the small numbers: see the assertion below. `retention` is 0 while the events are kept, 1 while
// they are being dropped, 2 when they are gone.
//
// `labels` repeats the job's create_time so that a walk over one label is in the order of lists.
// Events are stored by the job's number, in order; a watcher reads a range.
constexpr char kFirst[] = R"sql(
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO meta VALUES ('page_token_key', randomblob(16));

CREATE TABLE jobs (
  number INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  state INTEGER NOT NULL,
  create_ns INTEGER NOT NULL,
  end_ns INTEGER,
  retention INTEGER NOT NULL DEFAULT 0,
  last_event INTEGER NOT NULL,
  display_name TEXT NOT NULL,
  attempt_sequence INTEGER NOT NULL,
  not_before_ns INTEGER NOT NULL,
  queued_ns INTEGER NOT NULL,
  run_seconds_used REAL NOT NULL,
  model_path TEXT NOT NULL,
  model_fingerprint TEXT NOT NULL,
  devices TEXT NOT NULL,
  request_id TEXT NOT NULL,
  request_hash TEXT NOT NULL,
  files BLOB NOT NULL,
  job BLOB NOT NULL
) STRICT;
CREATE INDEX jobs_by_create_time ON jobs (create_ns, number);
CREATE INDEX jobs_by_state ON jobs (state, create_ns, number);
CREATE INDEX jobs_by_display_name ON jobs (display_name, create_ns, number);
CREATE INDEX jobs_with_events ON jobs (end_ns) WHERE end_ns IS NOT NULL AND retention < 2;

CREATE TABLE labels (
  key TEXT NOT NULL,
  value TEXT NOT NULL,
  create_ns INTEGER NOT NULL,
  job INTEGER NOT NULL REFERENCES jobs (number),
  PRIMARY KEY (key, value, create_ns, job)
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
  job INTEGER NOT NULL REFERENCES jobs (number),
  sequence INTEGER NOT NULL,
  event BLOB NOT NULL,
  PRIMARY KEY (job, sequence)
) STRICT, WITHOUT ROWID;

CREATE TABLE requests (
  request_id TEXT PRIMARY KEY,
  job INTEGER NOT NULL REFERENCES jobs (number)
) STRICT, WITHOUT ROWID;

CREATE TABLE files (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL UNIQUE,
  upload_id TEXT UNIQUE,
  sha256 TEXT NOT NULL,
  file BLOB NOT NULL
) STRICT;
CREATE INDEX files_by_sha256 ON files (sha256);

CREATE TABLE models (name TEXT PRIMARY KEY, model BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE worker_cordons (worker TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
)sql";

// Files of the job's model: messages one after another, each behind its length, as in jobs.files.
constexpr char kModelFiles[] = "ALTER TABLE jobs ADD COLUMN model_files BLOB NOT NULL DEFAULT x''";

// `contents` are the checksums of a job's artifacts, and of its checkpoint's files, which are kept
// apart. Jobs that ended before the table was there have their rows from FillContents: what they
// name is in their messages, out of SQL's reach.
constexpr char kContents[] = R"sql(
ALTER TABLE jobs ADD COLUMN running_ns INTEGER NOT NULL DEFAULT -9223372036854775808;
CREATE TABLE contents (
  job INTEGER NOT NULL REFERENCES jobs (number),
  sha256 TEXT NOT NULL,
  checkpoint INTEGER NOT NULL,
  PRIMARY KEY (job, sha256, checkpoint)
) STRICT, WITHOUT ROWID;
CREATE INDEX contents_by_sha256 ON contents (sha256, checkpoint);
INSERT INTO meta VALUES ('contents_to_fill', x'');
)sql";

// What finished runs tell of the planner's times: a RunTime each, by what makes two of them alike.
// Runs of jobs that ended before the table was there are not in it: their offers said nothing of
// their kind.
constexpr char kRunTimes[] = R"sql(
CREATE TABLE run_times (
  job INTEGER PRIMARY KEY REFERENCES jobs (number),
  kind TEXT NOT NULL,
  run BLOB NOT NULL
) STRICT;
CREATE INDEX run_times_by_kind ON run_times (kind, job);
)sql";

static_assert(lemo::v1::Job::SUCCEEDED == 7 && lemo::v1::Job::FAILED == 8 &&
                  lemo::v1::Job::CANCELLED == 9 && lemo::v1::Job::State_MAX == 9,
              "queries take states below SUCCEEDED for those of jobs that have not ended");

absl::Status ApplyOne(SqlConnection& db, const std::string& sql, size_t version) {
  LEMO_RETURN_IF_ERROR(db.Execute("BEGIN IMMEDIATE"));
  absl::Status status = db.Execute(sql);
  if (status.ok()) {
    status = db.Execute(absl::StrCat("PRAGMA user_version = ", version,
                                     "; PRAGMA application_id = ", kApplicationId, "; COMMIT"));
  }
  if (!status.ok() && db.InTransaction()) db.Execute("ROLLBACK").IgnoreError();
  return status;
}

}  // namespace

const std::vector<std::string>& SchemaMigrations() {
  static const auto* const migrations =
      new std::vector<std::string>{kFirst, kModelFiles, kContents, kRunTimes};
  return *migrations;
}

absl::Status CheckSchema(SqlConnection& db, const std::vector<std::string>& migrations) {
  LEMO_ASSIGN_OR_RETURN(const int64_t version, db.QueryInt("PRAGMA user_version"));
  LEMO_ASSIGN_OR_RETURN(const int64_t application, db.QueryInt("PRAGMA application_id"));
  LEMO_ASSIGN_OR_RETURN(const int64_t tables, db.QueryInt("SELECT count(*) FROM sqlite_schema"));
  if (application != kApplicationId && (application != 0 || version != 0 || tables != 0)) {
    return absl::FailedPreconditionError(
        absl::StrCat(db.path(), " is a database of another program"));
  }
  if (version > static_cast<int64_t>(migrations.size())) {
    return absl::FailedPreconditionError(
        absl::StrCat(db.path(), " has schema ", version, ", this program knows ", migrations.size(),
                     "; use the newer program, or the backup made before it"));
  }
  return absl::OkStatus();
}

absl::Status Migrate(SqlConnection& db, const std::vector<std::string>& migrations) {
  LEMO_RETURN_IF_ERROR(CheckSchema(db, migrations));
  LEMO_ASSIGN_OR_RETURN(const int64_t version, db.QueryInt("PRAGMA user_version"));
  if (version == static_cast<int64_t>(migrations.size())) return absl::OkStatus();
  if (version > 0) {
    LEMO_RETURN_IF_ERROR(WriteBackup(db, absl::StrCat(db.path(), ".v", version, ".backup")));
  }
  for (size_t i = static_cast<size_t>(version); i < migrations.size(); ++i) {
    LEMO_RETURN_IF_ERROR(ApplyOne(db, migrations[i], i + 1));
  }
  return absl::OkStatus();
}

}  // namespace lemo::coordinator
