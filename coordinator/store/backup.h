// A copy of a database while it is in use.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "coordinator/store/sqlite.h"

namespace lemo::coordinator {

// Copies what is committed to `path`: written beside, checked, synced, renamed over what is there.
// FAILED_PRECONDITION when `path` is this database, or one that is in use or was not closed well:
// its write-ahead log would be applied to the copy. `db` must not be in a transaction.
absl::Status WriteBackup(SqlConnection& db, const std::string& path);

// DATA_LOSS, with what SQLite found first, when the structure of the database is damaged.
absl::Status CheckIntegrity(SqlConnection& db);

}  // namespace lemo::coordinator
