// Jobs, their events, request ids and cordons.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/store/job_query.h"
#include "coordinator/store/job_row.h"
#include "coordinator/store/page_token.h"
#include "coordinator/store/sqlite_store.h"

namespace lemo::coordinator {
namespace {

// Jobs can carry long failures; a page ends early rather than outgrow a gRPC message.
constexpr size_t kPageBytesMax = size_t{2} << 20;

using Change = std::variant<JobRow, PersistWorker>;

absl::Status PutCordon(SqlConnection& db, const PersistWorker& worker) {
  if (worker.cordoned) {
    return db
        .Run("INSERT INTO worker_cordons (worker) VALUES (?) ON CONFLICT DO NOTHING",
             {worker.worker})
        .status();
  }
  return db.Run("DELETE FROM worker_cordons WHERE worker = ?", {worker.worker}).status();
}

}  // namespace

int EffectivePageSize(int page_size) { return page_size <= 0 ? 50 : std::min(page_size, 1000); }

absl::Status SqliteStore::Apply(const std::vector<Effect>& persists) {
  std::vector<Change> changes;
  for (const Effect& effect : persists) {
    if (const auto* persist = std::get_if<Persist>(&effect)) changes.emplace_back(ToRow(*persist));
    if (const auto* worker = std::get_if<PersistWorker>(&effect)) changes.emplace_back(*worker);
  }
  if (changes.empty()) return absl::OkStatus();
  return queue_.Commit([&changes](SqlConnection& db) -> absl::Status {
    for (const Change& change : changes) {
      const auto* row = std::get_if<JobRow>(&change);
      LEMO_RETURN_IF_ERROR(row != nullptr ? PutJob(db, *row)
                                          : PutCordon(db, std::get<PersistWorker>(change)));
    }
    return absl::OkStatus();
  });
}

absl::StatusOr<std::optional<Store::Request>> SqliteStore::FindRequest(
    const std::string& request_id) {
  const ReaderPool::Lease db = readers_->Take();
  LEMO_ASSIGN_OR_RETURN(
      SqlStatement found,
      db->Prepare("SELECT jobs.name, jobs.request_hash FROM requests "
                  "JOIN jobs ON jobs.number = requests.job WHERE requests.request_id = ?",
                  {request_id}));
  LEMO_ASSIGN_OR_RETURN(const bool there, found.Step());
  if (!there) return std::nullopt;
  return Request{std::string(found.Bytes(0)), std::string(found.Bytes(1))};
}

absl::StatusOr<lemo::v1::Job> SqliteStore::GetJob(const std::string& name) {
  const ReaderPool::Lease db = readers_->Take();
  LEMO_ASSIGN_OR_RETURN(SqlStatement found,
                        db->Prepare("SELECT job FROM jobs WHERE name = ?", {name}));
  LEMO_ASSIGN_OR_RETURN(const bool there, found.Step());
  if (!there) return absl::NotFoundError(absl::StrCat(name, ": no such job"));
  lemo::v1::Job job;
  LEMO_RETURN_IF_ERROR(ParseStored(found.Bytes(0), name, &job));
  return job;
}

absl::StatusOr<JobPage> SqliteStore::ListJobs(const JobFilter& filter, bool newest_first,
                                              int page_size, const std::string& page_token) {
  const std::string scope = JobListScope(filter, newest_first);
  PagePosition last;
  if (!page_token.empty()) {
    LEMO_ASSIGN_OR_RETURN(last, DecodePageToken(token_key_, scope, page_token));
  }
  page_size = EffectivePageSize(page_size);
  // One more than the page, to know whether there is another.
  const JobQuery query =
      BuildJobQuery(filter, newest_first, page_token.empty() ? nullptr : &last, page_size + 1);
  const ReaderPool::Lease db = readers_->Take();
  LEMO_ASSIGN_OR_RETURN(SqlStatement rows, db->PrepareOnce(query.sql, query.values));
  JobPage page;
  size_t bytes = 0;
  for (;;) {
    LEMO_ASSIGN_OR_RETURN(const bool row, rows.Step());
    if (!row) return page;
    bytes += rows.Bytes(2).size();
    if (static_cast<int>(page.jobs.size()) == page_size ||
        (!page.jobs.empty() && bytes > kPageBytesMax)) {
      page.next_token = EncodePageToken(token_key_, scope, last);
      return page;
    }
    last = {rows.Int(0), rows.Int(1)};
    LEMO_RETURN_IF_ERROR(ParseStored(rows.Bytes(2), absl::StrCat("job number ", last.number),
                                     &page.jobs.emplace_back()));
  }
}

absl::StatusOr<std::vector<JobRecord>> SqliteStore::ActiveJobs() {
  const ReaderPool::Lease db = readers_->Take();
  return ReadActiveJobs(*db);
}

absl::StatusOr<std::set<std::string>> SqliteStore::CordonedWorkers() {
  const ReaderPool::Lease db = readers_->Take();
  LEMO_ASSIGN_OR_RETURN(SqlStatement rows, db->Prepare("SELECT worker FROM worker_cordons"));
  std::set<std::string> workers;
  for (;;) {
    LEMO_ASSIGN_OR_RETURN(const bool row, rows.Step());
    if (!row) return workers;
    workers.emplace(rows.Bytes(0));
  }
}

absl::StatusOr<int64_t> SqliteStore::LastNumber() {
  // Jobs are never deleted.
  return readers_->Take()->QueryInt("SELECT max(number) FROM jobs");
}

absl::StatusOr<std::vector<lemo::v1::JobEvent>> SqliteStore::Events(const std::string& job,
                                                                    int64_t after_sequence,
                                                                    int limit) {
  const ReaderPool::Lease db = readers_->Take();
  int64_t number = 0;
  {
    LEMO_ASSIGN_OR_RETURN(SqlStatement found,
                          db->Prepare("SELECT number, retention, last_event FROM jobs "
                                      "WHERE name = ?",
                                      {job}));
    LEMO_ASSIGN_OR_RETURN(const bool there, found.Step());
    if (!there) return absl::NotFoundError(absl::StrCat(job, ": no such job"));
    // A history that is being dropped is gone at once: nobody shall see a part of it.
    if (found.Int(1) != 0 && after_sequence < found.Int(2)) {
      return absl::OutOfRangeError(
          absl::StrCat(job, " ended long ago and its events were dropped; the job itself is kept"));
    }
    number = found.Int(0);
  }
  LEMO_ASSIGN_OR_RETURN(SqlStatement rows,
                        db->Prepare("SELECT event FROM events WHERE job = ? AND sequence > ? "
                                    "ORDER BY sequence LIMIT ?",
                                    {number, after_sequence, int64_t{std::max(limit, 0)}}));
  std::vector<lemo::v1::JobEvent> events;
  for (;;) {
    LEMO_ASSIGN_OR_RETURN(const bool row, rows.Step());
    if (!row) return events;
    LEMO_RETURN_IF_ERROR(ParseStored(rows.Bytes(0), job, &events.emplace_back()));
  }
}

absl::StatusOr<std::vector<lemo::v1::RunTime>> SqliteStore::RunTimes(int of_kind, int limit) {
  const ReaderPool::Lease db = readers_->Take();
  return ReadRunTimes(*db, of_kind, limit);
}

}  // namespace lemo::coordinator
