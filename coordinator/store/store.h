// What the coordinator never forgets: jobs, events, files, models, cordons, request ids.
//
// Every call is one transaction that is durable when the call returns; calls of several threads are
// committed in groups. Errors: NOT_FOUND and ALREADY_EXISTS as said; RESOURCE_EXHAUSTED when the
// disk is full (nothing of the call has happened); DATA_LOSS when the database is damaged; else
// INTERNAL. Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/core/core.h"
#include "lemo/v1/file_service.pb.h"
#include "lemo/v1/job.pb.h"
#include "lemo/v1/model_service.pb.h"
#include "lemo/v1/timing.pb.h"

namespace lemo::coordinator {

// Whether a job in that state never changes again.
bool HasEnded(lemo::v1::Job::State state);

// One condition of a job list; all must hold.
struct JobFilter {
  std::vector<lemo::v1::Job::State> states;                 // any of them; empty: all
  std::vector<std::pair<std::string, std::string>> labels;  // all of them
  std::optional<std::string> display_name;
  absl::Time created_after = absl::InfinitePast();     // exclusive
  absl::Time created_before = absl::InfiniteFuture();  // exclusive
};

struct JobPage {
  std::vector<lemo::v1::Job> jobs;
  std::string next_token;  // empty: no more. Stays valid when jobs come and go.
};

class Store {
 public:
  virtual ~Store() = default;

  // The Persist and PersistWorker effects of one core step, or of several, in order, in one
  // transaction; other effects are passed over. A job that is not there yet is created; its
  // record's request_id, if any, is then taken by it. ALREADY_EXISTS (and nothing is stored) when
  // that id is taken. Events continue the job's stored ones: a gap is INTERNAL, the same event
  // again is fine, one with other content DATA_LOSS.
  virtual absl::Status Apply(const std::vector<Effect>& persists) = 0;

  struct Request {
    std::string job;
    std::string request_hash;
  };
  virtual absl::StatusOr<std::optional<Request>> FindRequest(const std::string& request_id) = 0;

  virtual absl::StatusOr<lemo::v1::Job> GetJob(const std::string& name) = 0;
  // `page_size` 0 means 50, at most 1000; a page also ends at 2 MiB, so it may be shorter and still
  // have a next one. INVALID_ARGUMENT for a token that this store did not give for this filter and
  // order.
  virtual absl::StatusOr<JobPage> ListJobs(const JobFilter& filter, bool newest_first,
                                           int page_size, const std::string& page_token) = 0;
  // Jobs that have not ended, by number.
  virtual absl::StatusOr<std::vector<JobRecord>> ActiveJobs() = 0;
  virtual absl::StatusOr<std::set<std::string>> CordonedWorkers() = 0;
  // The largest JobRecord::number ever given; 0 at first.
  virtual absl::StatusOr<int64_t> LastNumber() = 0;
  // Up to `limit` events after `after_sequence`, in order. NOT_FOUND; OUT_OF_RANGE when there were
  // such events and they have expired.
  virtual absl::StatusOr<std::vector<lemo::v1::JobEvent>> Events(const std::string& job,
                                                                 int64_t after_sequence,
                                                                 int limit) = 0;

  // What finished runs by contract tell of the planner's times, newest jobs first: at most
  // `of_kind` of those that are alike (family, shape class, device, rates), and `limit` altogether.
  virtual absl::StatusOr<std::vector<lemo::v1::RunTime>> RunTimes(int of_kind, int limit) = 0;

  // ALREADY_EXISTS when the name or the upload id (unless it is empty) is there.
  virtual absl::Status CreateFile(const lemo::v1::File& file, const std::string& upload_id) = 0;
  virtual absl::StatusOr<lemo::v1::File> GetFile(const std::string& name) = 0;
  virtual absl::StatusOr<std::optional<lemo::v1::File>> FindUpload(
      const std::string& upload_id) = 0;
  struct FilePage {
    std::vector<lemo::v1::File> files;
    std::string next_token;
  };
  // Newest first; sizes and tokens as in ListJobs.
  virtual absl::StatusOr<FilePage> ListFiles(int page_size, const std::string& page_token) = 0;
  virtual absl::Status DeleteFile(const std::string& name) = 0;  // NOT_FOUND
  // Whether content of this checksum is named by any File, or by a job as an artifact; or, for
  // `checkpoint`, as a part of its checkpoint.
  virtual absl::StatusOr<bool> HasContent(const std::string& sha256, bool checkpoint = false) = 0;

  virtual absl::Status CreateModel(const lemo::v1::Model& model) = 0;   // ALREADY_EXISTS
  virtual absl::Status ReplaceModel(const lemo::v1::Model& model) = 0;  // NOT_FOUND
  virtual absl::StatusOr<lemo::v1::Model> GetModel(const std::string& name) = 0;
  virtual absl::StatusOr<std::vector<lemo::v1::Model>> ListModels() = 0;  // by name
  virtual absl::Status DeleteModel(const std::string& name) = 0;

  // Drops events and log rows of jobs that ended before `before`; the jobs stay. Answers how many
  // events.
  virtual absl::StatusOr<int64_t> Expire(absl::Time before) = 0;
  // A consistent copy while running, written beside, checked, synced, and renamed over what is
  // there. FAILED_PRECONDITION when that is a database in use.
  virtual absl::Status Backup(const std::string& path) = 0;
};

struct NamedContent {
  std::string sha256;
  std::string owner;  // the file or job that names it
  bool checkpoint = false;
};
// All content that the database at `path`, which nobody has open, names; what several name comes
// several times. Stops at the first error of `visit` and answers that, else how many jobs there
// are.
absl::StatusOr<int64_t> VisitContents(
    const std::string& path, const std::function<absl::Status(const NamedContent&)>& visit);

// SQLite in WAL mode with full sync. Creates the file in an existing directory, or migrates an
// older schema after a backup beside it (`<path>.v<schema>.backup`); FAILED_PRECONDITION for a
// schema newer than this program, or when another process has it open.
absl::StatusOr<std::unique_ptr<Store>> OpenSqliteStore(const std::string& path);

}  // namespace lemo::coordinator
