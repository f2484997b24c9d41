#include "coordinator/store/job_row.h"

#include <algorithm>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"
#include "coordinator/core/contract.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/util/delimited_message_util.h"

namespace lemo::coordinator {
namespace {

using google::protobuf::Timestamp;
using google::protobuf::io::ArrayInputStream;
using google::protobuf::io::CodedOutputStream;
using google::protobuf::io::StringOutputStream;
namespace util = google::protobuf::util;

int64_t TimestampNanoseconds(const Timestamp& time) {
  return ToNanoseconds(absl::FromUnixSeconds(time.seconds()) + absl::Nanoseconds(time.nanos()));
}

template <typename File>
std::string JoinFiles(const std::vector<File>& files) {
  std::string bytes;
  StringOutputStream stream(&bytes);
  for (const File& file : files) {
    util::SerializeDelimitedToZeroCopyStream(file, &stream);
  }
  return bytes;
}

template <typename File>
bool SplitFiles(std::string_view bytes, std::vector<File>* files) {
  ArrayInputStream stream(bytes.data(), static_cast<int>(bytes.size()));
  while (stream.ByteCount() < static_cast<int64_t>(bytes.size())) {
    bool clean_end = false;
    if (!util::ParseDelimitedFromZeroCopyStream(&files->emplace_back(), &stream, &clean_end)) {
      return false;
    }
  }
  return true;
}

bool SplitDevices(std::string_view text, std::vector<int>* devices) {
  for (const auto& part : absl::StrSplit(std::string(text), ',', absl::SkipEmpty())) {
    if (!absl::SimpleAtoi(part, &devices->emplace_back())) return false;
  }
  return true;
}

std::set<std::pair<std::string, bool>> ContentsOf(const lemo::v1::Job& job) {
  std::set<std::pair<std::string, bool>> contents;
  for (const auto& artifact : job.artifacts()) contents.emplace(artifact.sha256(), false);
  for (const auto& file : job.checkpoint().files()) contents.emplace(file.sha256(), true);
  return contents;
}

// Most changes of a job leave its contents as they are, so they are read before they are written.
absl::Status PutContents(SqlConnection& db, int64_t job,
                         const std::set<std::pair<std::string, bool>>& contents) {
  std::set<std::pair<std::string, bool>> stored;
  {
    LEMO_ASSIGN_OR_RETURN(
        SqlStatement rows,
        db.Prepare("SELECT sha256, checkpoint FROM contents WHERE job = ?", {job}));
    for (;;) {
      LEMO_ASSIGN_OR_RETURN(const bool row, rows.Step());
      if (!row) break;
      stored.emplace(rows.Bytes(0), rows.Int(1) != 0);
    }
  }
  if (stored == contents) return absl::OkStatus();
  LEMO_RETURN_IF_ERROR(db.Run("DELETE FROM contents WHERE job = ?", {job}).status());
  for (const auto& [sha256, checkpoint] : contents) {
    LEMO_RETURN_IF_ERROR(db.Run("INSERT INTO contents (job, sha256, checkpoint) VALUES (?,?,?)",
                                {job, sha256, int64_t{checkpoint}})
                             .status());
  }
  return absl::OkStatus();
}

absl::Status CreateJob(SqlConnection& db, const JobRow& row, int64_t last_event) {
  const JobRecord& record = row.record;
  const lemo::v1::Job& job = record.job;
  {
    LEMO_ASSIGN_OR_RETURN(SqlStatement other,
                          db.Prepare("SELECT name FROM jobs WHERE number = ?", {record.number}));
    LEMO_ASSIGN_OR_RETURN(const bool taken, other.Step());
    if (taken) {
      return absl::InternalError(absl::StrCat(job.name(), ": the number ", record.number,
                                              " is taken by ", std::string(other.Bytes(0))));
    }
  }
  LEMO_RETURN_IF_ERROR(
      db.Run("INSERT INTO jobs (number, name, state, create_ns, end_ns, last_event, display_name, "
             "attempt_sequence, not_before_ns, queued_ns, run_seconds_used, model_path, "
             "model_fingerprint, devices, request_id, request_hash, files, model_files, job, "
             "running_ns) "
             "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
             {record.number,
              job.name(),
              int64_t{job.state()},
              row.create_ns,
              row.end_ns == 0 ? SqlValue() : SqlValue(row.end_ns),
              last_event,
              job.spec().display_name(),
              record.attempt_sequence,
              ToNanoseconds(record.not_before),
              ToNanoseconds(record.queued_time),
              record.run_seconds_used,
              record.model_path,
              record.model_fingerprint,
              row.devices,
              record.request_id,
              record.request_hash,
              SqlBlob(row.files),
              SqlBlob(row.model_files),
              SqlBlob(row.job),
              ToNanoseconds(record.running_since)})
          .status());
  for (const auto& [key, value] : job.spec().labels()) {
    LEMO_RETURN_IF_ERROR(db.Run("INSERT INTO labels (key, value, create_ns, job) VALUES (?,?,?,?)",
                                {key, value, row.create_ns, record.number})
                             .status());
  }
  if (record.request_id.empty()) return absl::OkStatus();
  LEMO_ASSIGN_OR_RETURN(
      const int64_t inserted,
      db.Run("INSERT INTO requests (request_id, job) VALUES (?,?) ON CONFLICT DO NOTHING",
             {record.request_id, record.number}));
  if (inserted == 1) return absl::OkStatus();
  return absl::AlreadyExistsError(
      absl::StrCat("request_id ", record.request_id, " was used by another job"));
}

absl::Status UpdateJob(SqlConnection& db, const JobRow& row, int64_t last_event) {
  const JobRecord& record = row.record;
  return db
      .Run(
          "UPDATE jobs SET state = ?, end_ns = ?, last_event = ?, attempt_sequence = ?, "
          "not_before_ns = ?, queued_ns = ?, run_seconds_used = ?, model_path = ?, "
          "model_fingerprint = ?, devices = ?, files = ?, job = ?, running_ns = ? "
          "WHERE number = ?",
          {int64_t{record.job.state()}, row.end_ns == 0 ? SqlValue() : SqlValue(row.end_ns),
           last_event, record.attempt_sequence, ToNanoseconds(record.not_before),
           ToNanoseconds(record.queued_time), record.run_seconds_used, record.model_path,
           record.model_fingerprint, row.devices, SqlBlob(row.files), SqlBlob(row.job),
           ToNanoseconds(record.running_since), record.number})
      .status();
}

// What is there must be the same: an event is final once somebody may have seen it.
absl::Status CheckSameEvent(SqlConnection& db, const JobRow& row, int64_t sequence,
                            std::string_view bytes) {
  LEMO_ASSIGN_OR_RETURN(SqlStatement found,
                        db.Prepare("SELECT event FROM events WHERE job = ? AND sequence = ?",
                                   {row.record.number, sequence}));
  LEMO_ASSIGN_OR_RETURN(const bool there, found.Step());
  if (there && found.Bytes(0) == bytes) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat(row.record.job.name(), ": event ", sequence,
                   there ? " is stored with other content" : " was stored and is gone"));
}

}  // namespace

int64_t ToNanoseconds(absl::Time time) {
  if (time == absl::InfinitePast()) return std::numeric_limits<int64_t>::min();
  if (time == absl::InfiniteFuture()) return std::numeric_limits<int64_t>::max();
  return absl::ToUnixNanos(time);
}

absl::Time FromNanoseconds(int64_t nanoseconds) {
  if (nanoseconds == std::numeric_limits<int64_t>::min()) return absl::InfinitePast();
  if (nanoseconds == std::numeric_limits<int64_t>::max()) return absl::InfiniteFuture();
  return absl::FromUnixNanos(nanoseconds);
}

bool HasEnded(lemo::v1::Job::State state) { return state >= lemo::v1::Job::SUCCEEDED; }

std::string SerializeDeterministic(const google::protobuf::MessageLite& message) {
  std::string bytes;
  {
    StringOutputStream stream(&bytes);
    CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    message.SerializeToCodedStream(&coded);
  }
  return bytes;
}

absl::Status ParseStored(std::string_view bytes, std::string_view what,
                         google::protobuf::MessageLite* message) {
  if (message->ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat(std::string(what), ": its record is damaged"));
}

JobRow ToRow(const Persist& persist) {
  JobRow row;
  row.record = persist.record;
  const lemo::v1::Job& job = row.record.job;
  row.create_ns = TimestampNanoseconds(job.create_time());
  if (HasEnded(job.state())) {
    row.end_ns = job.has_end_time() ? TimestampNanoseconds(job.end_time()) : row.create_ns;
    if (row.end_ns == 0) row.end_ns = 1;
  }
  row.devices = absl::StrJoin(row.record.devices, ",");
  row.files = JoinFiles(row.record.files);
  row.model_files = JoinFiles(row.record.model_files);
  row.job = SerializeDeterministic(job);
  row.contents = ContentsOf(job);
  if (const std::optional<lemo::v1::RunTime> run = RunTimeOf(job)) {
    const lemo::v1::RunForecast& of = run->forecast();
    row.run_kind = absl::StrCat(of.family(), "; ", of.shape_class(), "; ", of.device(), "; ",
                                of.rates(), "; ", of.ranks());
    row.run_time = SerializeDeterministic(*run);
  }
  for (const lemo::v1::JobEvent& event : persist.events) {
    row.events.emplace_back(event.sequence(), SerializeDeterministic(event));
  }
  return row;
}

absl::Status PutJob(SqlConnection& db, const JobRow& row) {
  const std::string& name = row.record.job.name();
  int64_t stored = 0;  // events
  bool there = false;
  {
    LEMO_ASSIGN_OR_RETURN(SqlStatement found,
                          db.Prepare("SELECT number, last_event FROM jobs WHERE name = ?", {name}));
    LEMO_ASSIGN_OR_RETURN(there, found.Step());
    if (there && found.Int(0) != row.record.number) {
      return absl::InternalError(
          absl::StrCat(name, " has number ", found.Int(0), ", not ", row.record.number));
    }
    if (there) stored = found.Int(1);
  }
  int64_t last = stored;
  for (const auto& [sequence, bytes] : row.events) {
    if (sequence < 1 || sequence > last + 1) {
      return absl::InternalError(
          absl::StrCat(name, ": event ", sequence, " does not follow event ", last));
    }
    last = std::max(last, sequence);
  }
  LEMO_RETURN_IF_ERROR(there ? UpdateJob(db, row, last) : CreateJob(db, row, last));
  LEMO_RETURN_IF_ERROR(PutContents(db, row.record.number, row.contents));
  if (!row.run_time.empty()) {
    LEMO_RETURN_IF_ERROR(
        db.Run("INSERT INTO run_times (job, kind, run) VALUES (?,?,?) ON CONFLICT DO NOTHING",
               {row.record.number, row.run_kind, SqlBlob(row.run_time)})
            .status());
  }
  for (const auto& [sequence, bytes] : row.events) {
    if (sequence <= stored) {
      LEMO_RETURN_IF_ERROR(CheckSameEvent(db, row, sequence, bytes));
      continue;
    }
    LEMO_RETURN_IF_ERROR(db.Run("INSERT INTO events (job, sequence, event) VALUES (?,?,?)",
                                {row.record.number, sequence, SqlBlob(bytes)})
                             .status());
    stored = sequence;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<lemo::v1::RunTime>> ReadRunTimes(SqlConnection& db, int of_kind,
                                                            int limit) {
  LEMO_ASSIGN_OR_RETURN(SqlStatement rows,
                        db.Prepare("SELECT job, run FROM (SELECT job, run, row_number() OVER "
                                   "(PARTITION BY kind ORDER BY job DESC) AS place FROM run_times) "
                                   "WHERE place <= ? ORDER BY job DESC LIMIT ?",
                                   {int64_t{of_kind}, int64_t{limit}}));
  std::vector<lemo::v1::RunTime> runs;
  for (;;) {
    LEMO_ASSIGN_OR_RETURN(const bool row, rows.Step());
    if (!row) return runs;
    LEMO_RETURN_IF_ERROR(ParseStored(rows.Bytes(1), absl::StrCat("run of job number ", rows.Int(0)),
                                     &runs.emplace_back()));
  }
}

absl::Status FillContents(SqlConnection& db) {
  LEMO_ASSIGN_OR_RETURN(const int64_t wanted,
                        db.QueryInt("SELECT count(*) FROM meta WHERE key = 'contents_to_fill'"));
  if (wanted == 0) return absl::OkStatus();
  const auto fill = [&db]() -> absl::Status {
    LEMO_ASSIGN_OR_RETURN(SqlStatement jobs,
                          db.PrepareOnce("SELECT number, job FROM jobs WHERE state = ?",
                                         {int64_t{lemo::v1::Job::SUCCEEDED}}));
    for (;;) {
      LEMO_ASSIGN_OR_RETURN(const bool row, jobs.Step());
      if (!row) return db.Execute("DELETE FROM meta WHERE key = 'contents_to_fill'; COMMIT");
      lemo::v1::Job job;
      const int64_t number = jobs.Int(0);
      LEMO_RETURN_IF_ERROR(ParseStored(jobs.Bytes(1), absl::StrCat("job number ", number), &job));
      LEMO_RETURN_IF_ERROR(PutContents(db, number, ContentsOf(job)));
    }
  };
  LEMO_RETURN_IF_ERROR(db.Execute("BEGIN IMMEDIATE"));
  absl::Status status = fill();
  if (!status.ok() && db.InTransaction()) db.Execute("ROLLBACK").IgnoreError();
  return status;
}

absl::StatusOr<std::vector<JobRecord>> ReadActiveJobs(SqlConnection& db) {
  LEMO_ASSIGN_OR_RETURN(
      SqlStatement rows,
      db.Prepare("SELECT number, name, attempt_sequence, not_before_ns, queued_ns, "
                 "run_seconds_used, model_path, model_fingerprint, devices, request_id, "
                 "request_hash, files, model_files, job, running_ns "
                 "FROM jobs INDEXED BY jobs_by_state "
                 "WHERE state < ? ORDER BY number",
                 {int64_t{lemo::v1::Job::SUCCEEDED}}));
  std::vector<JobRecord> records;
  for (;;) {
    LEMO_ASSIGN_OR_RETURN(const bool row, rows.Step());
    if (!row) return records;
    JobRecord& record = records.emplace_back();
    const std::string name(rows.Bytes(1));
    record.number = rows.Int(0);
    record.attempt_sequence = rows.Int(2);
    record.not_before = FromNanoseconds(rows.Int(3));
    record.queued_time = FromNanoseconds(rows.Int(4));
    record.run_seconds_used = rows.Double(5);
    record.model_path = rows.Bytes(6);
    record.model_fingerprint = rows.Bytes(7);
    if (!SplitDevices(rows.Bytes(8), &record.devices) ||
        !SplitFiles(rows.Bytes(11), &record.files) ||
        !SplitFiles(rows.Bytes(12), &record.model_files)) {
      return absl::DataLossError(absl::StrCat(name, ": its record is damaged"));
    }
    record.request_id = rows.Bytes(9);
    record.request_hash = rows.Bytes(10);
    record.running_since = FromNanoseconds(rows.Int(14));
    LEMO_RETURN_IF_ERROR(ParseStored(rows.Bytes(13), name, &record.job));
  }
}

}  // namespace lemo::coordinator
