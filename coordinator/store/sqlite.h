// A thin layer over SQLite: connections, cached statements, errors as statuses.
//
// Statuses: RESOURCE_EXHAUSTED when the disk is full, DATA_LOSS when the file is damaged or no
// database, NOT_FOUND or PERMISSION_DENIED when it cannot be opened, else INTERNAL; all with the
// path.
#pragma once

#include <sqlite3.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lemo::coordinator {

// Bytes that are not text.
struct SqlBlob {
  explicit SqlBlob(std::string_view b) : bytes(b) {}
  std::string_view bytes;
};

// A value to bind; monostate is NULL, a string_view is text. Needs to live only for the call.
using SqlValue = std::variant<std::monostate, int64_t, double, std::string_view, SqlBlob>;

class SqlConnection;

// A statement with its values bound. Not thread-safe; lives shorter than its connection.
class SqlStatement {
 public:
  SqlStatement(SqlStatement&& other) noexcept;
  SqlStatement& operator=(SqlStatement&&) = delete;
  ~SqlStatement();

  // Goes on to the next row; false: there is none.
  absl::StatusOr<bool> Step();

  // Of the current row. Views last until the next Step.
  bool IsNull(int column) const;
  int64_t Int(int column) const;
  double Double(int column) const;
  std::string_view Bytes(int column) const;

 private:
  friend class SqlConnection;
  SqlStatement(SqlConnection* connection, sqlite3_stmt* statement, bool owned)
      : connection_(connection), statement_(statement), owned_(owned) {}

  SqlConnection* connection_;
  sqlite3_stmt* statement_;  // nullptr after a move
  bool owned_;               // else the connection's cache has it
};

// One connection. Not thread-safe: one thread at a time.
class SqlConnection {
 public:
  // Creates the file when it is not there. Sets the busy timeout and nothing else.
  static absl::StatusOr<std::unique_ptr<SqlConnection>> Open(const std::string& path);
  ~SqlConnection();
  SqlConnection(const SqlConnection&) = delete;
  SqlConnection& operator=(const SqlConnection&) = delete;

  // A statement of a text that is used again and again; its compiled form is kept. At most one of
  // the same text may live at a time.
  absl::StatusOr<SqlStatement> Prepare(std::string_view sql,
                                       const std::vector<SqlValue>& values = {});
  // A statement of a text that was made for this call.
  absl::StatusOr<SqlStatement> PrepareOnce(std::string_view sql,
                                           const std::vector<SqlValue>& values = {});
  // Prepare, then all steps; rows are passed over. Answers how many rows were changed.
  absl::StatusOr<int64_t> Run(std::string_view sql, const std::vector<SqlValue>& values = {});
  // Several statements without values, uncached.
  absl::Status Execute(const std::string& sql);
  // The first column of the first row, not cached: for pragmas.
  absl::StatusOr<std::string> QueryText(std::string_view sql);
  absl::StatusOr<int64_t> QueryInt(std::string_view sql);

  // False also when SQLite has undone the transaction by itself, as it may on a full disk.
  bool InTransaction() const { return sqlite3_get_autocommit(db_) == 0; }
  const std::string& path() const { return path_; }

  // The last error of this connection. `system_error` is errno after the call that failed: SQLite
  // does not keep the one of a failed COMMIT.
  absl::Status Error(std::string_view action, int system_error) const;

 private:
  SqlConnection(std::string path, sqlite3* db) : path_(std::move(path)), db_(db) {}
  absl::Status Bind(sqlite3_stmt* statement, const std::vector<SqlValue>& values);

  const std::string path_;
  sqlite3* const db_;
  std::unordered_map<std::string, sqlite3_stmt*> cache_;
};

}  // namespace lemo::coordinator
