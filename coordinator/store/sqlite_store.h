// The Store in SQLite. Programs use OpenSqliteStore of store.h.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "coordinator/store/commit_queue.h"
#include "coordinator/store/file_lock.h"
#include "coordinator/store/reader_pool.h"
#include "coordinator/store/sqlite.h"
#include "coordinator/store/store.h"

namespace lemo::coordinator {

// Writes go through one queue, which commits them in groups; reads through a pool of connections
// that see what is committed.
class SqliteStore : public Store {
 public:
  SqliteStore(FileLock lock, std::string path, std::string token_key,
              std::unique_ptr<SqlConnection> writer, std::unique_ptr<ReaderPool> readers)
      : lock_(std::move(lock)),
        path_(std::move(path)),
        token_key_(std::move(token_key)),
        queue_(std::move(writer)),
        readers_(std::move(readers)) {}

  // sqlite_jobs.cc
  absl::Status Apply(const std::vector<Effect>& persists) override;
  absl::StatusOr<std::optional<Request>> FindRequest(const std::string& request_id) override;
  absl::StatusOr<lemo::v1::Job> GetJob(const std::string& name) override;
  absl::StatusOr<JobPage> ListJobs(const JobFilter& filter, bool newest_first, int page_size,
                                   const std::string& page_token) override;
  absl::StatusOr<std::vector<JobRecord>> ActiveJobs() override;
  absl::StatusOr<std::set<std::string>> CordonedWorkers() override;
  absl::StatusOr<int64_t> LastNumber() override;
  absl::StatusOr<std::vector<lemo::v1::JobEvent>> Events(const std::string& job,
                                                         int64_t after_sequence,
                                                         int limit) override;
  absl::StatusOr<std::vector<lemo::v1::RunTime>> RunTimes(int of_kind, int limit) override;

  // sqlite_catalog.cc
  absl::Status CreateFile(const lemo::v1::File& file, const std::string& upload_id) override;
  absl::StatusOr<lemo::v1::File> GetFile(const std::string& name) override;
  absl::StatusOr<std::optional<lemo::v1::File>> FindUpload(const std::string& upload_id) override;
  absl::StatusOr<FilePage> ListFiles(int page_size, const std::string& page_token) override;
  absl::Status DeleteFile(const std::string& name) override;
  absl::StatusOr<bool> HasContent(const std::string& sha256, bool checkpoint) override;
  absl::Status CreateModel(const lemo::v1::Model& model) override;
  absl::Status ReplaceModel(const lemo::v1::Model& model) override;
  absl::StatusOr<lemo::v1::Model> GetModel(const std::string& name) override;
  absl::StatusOr<std::vector<lemo::v1::Model>> ListModels() override;
  absl::Status DeleteModel(const std::string& name) override;

  // sqlite_store.cc
  absl::StatusOr<int64_t> Expire(absl::Time before) override;
  absl::Status Backup(const std::string& path) override;

 private:
  const FileLock lock_;  // given back last
  const std::string path_;
  const std::string token_key_;
  CommitQueue queue_;
  const std::unique_ptr<ReaderPool> readers_;
};

// `page_size` as the API means it: 0 is the default of 50, at most 1000.
int EffectivePageSize(int page_size);

}  // namespace lemo::coordinator
