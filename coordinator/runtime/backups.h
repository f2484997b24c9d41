// Copies of all that the coordinator keeps, made while it runs: DIR/backups/ID.
//
// A backup has the layout of the coordinator's own directory, so that one can be started on a copy
// of it. The database is copied first, content afterwards: content is written before the row that
// names it, and none is removed while a backup is made, so what the copied database names is there
// to be copied. Content never changes and is a hard link where the file system allows it.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/artifacts/artifacts.h"
#include "coordinator/runtime/janitor.h"
#include "coordinator/store/store.h"
#include "lemo/v1/admin_service.pb.h"

namespace lemo::coordinator {

// Thread-safe.
class Backups {
 public:
  // Of the coordinator's `directory`, which has what main.cc puts there. Removes what is left of
  // backups that were being made when the coordinator died. Everything outlives the backups.
  static absl::StatusOr<std::unique_ptr<Backups>> Open(std::filesystem::path directory,
                                                       Store* store, ArtifactStore* artifacts,
                                                       ArtifactStore* checkpoints,
                                                       Janitor* janitor);

  // `id` is a valid id (see names.h) that does not end with ".tmp", or empty: made from `now`.
  // `go_on` is asked often. ALREADY_EXISTS; ABORTED while another backup is made;
  // RESOURCE_EXHAUSTED for a full disk; DATA_LOSS, naming it, when content is missing; CANCELLED.
  // Nothing stays of a backup that fails.
  absl::StatusOr<lemo::v1::Backup> Create(const std::string& id, absl::Time now,
                                          const std::function<bool()>& go_on);
  // Newest first.
  absl::StatusOr<std::vector<lemo::v1::Backup>> List() const;

 private:
  Backups(std::filesystem::path directory, Store* store, ArtifactStore* artifacts,
          ArtifactStore* checkpoints, Janitor* janitor);
  absl::Status Fill(const std::filesystem::path& to, const std::function<bool()>& go_on,
                    lemo::v1::Backup* backup);
  // Where the copy of that content lies. NOT_FOUND when there is none to copy.
  absl::StatusOr<std::filesystem::path> Place(const NamedContent& content,
                                              const std::filesystem::path& to) const;
  absl::Status CopyLogs(const std::filesystem::path& to, const std::function<bool()>& go_on,
                        lemo::v1::Backup* backup) const;

  const std::filesystem::path directory_;
  Store* const store_;
  ArtifactStore* const artifacts_;
  ArtifactStore* const checkpoints_;
  Janitor* const janitor_;
  std::mutex one_at_a_time_;
};

}  // namespace lemo::coordinator
