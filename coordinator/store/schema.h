// The tables, and how older ones become today's.
//
// PRAGMA user_version counts the migrations that a database has had. A migration, once released, is
// never changed; new ones are added at the end.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/store/sqlite.h"

namespace lemo::coordinator {

// SQL of each migration, in order.
const std::vector<std::string>& SchemaMigrations();

// Refuses what must not be touched: FAILED_PRECONDITION for a database of another program or one
// that has had more migrations than `migrations`. An empty file is fine.
absl::Status CheckSchema(SqlConnection& db, const std::vector<std::string>& migrations);

// Applies what is missing, each in a transaction of its own. Before the first one a database that
// has had some already is copied to `<path>.v<count>.backup`.
absl::Status Migrate(SqlConnection& db, const std::vector<std::string>& migrations);

}  // namespace lemo::coordinator
