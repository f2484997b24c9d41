#include "coordinator/store/sqlite.h"

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace lemo::coordinator {
namespace {

// Readers meet a lock only while a crashed process's log is taken over, which is short.
constexpr int kBusyTimeoutMs = 10'000;

bool IsFullDisk(int system_error) {
  return system_error == ENOSPC || system_error == EDQUOT || system_error == EFBIG;
}

absl::StatusCode CodeOf(int code, int system_error) {
  switch (code & 0xff) {
    case SQLITE_FULL:
      return absl::StatusCode::kResourceExhausted;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::StatusCode::kDataLoss;
    case SQLITE_IOERR:
      return IsFullDisk(system_error) ? absl::StatusCode::kResourceExhausted
                                      : absl::StatusCode::kInternal;
    case SQLITE_CANTOPEN:
      if (IsFullDisk(system_error)) return absl::StatusCode::kResourceExhausted;
      if (system_error == ENOENT || system_error == ENOTDIR) return absl::StatusCode::kNotFound;
      if (system_error == EACCES) return absl::StatusCode::kPermissionDenied;
      return absl::StatusCode::kInternal;
    case SQLITE_READONLY:
    case SQLITE_PERM:
      return absl::StatusCode::kPermissionDenied;
    default:
      return absl::StatusCode::kInternal;
  }
}

// SQLite takes a null pointer for NULL, and an empty view may have one.
const char* DataOf(std::string_view bytes) { return bytes.empty() ? "" : bytes.data(); }

}  // namespace

SqlStatement::SqlStatement(SqlStatement&& other) noexcept
    : connection_(other.connection_),
      statement_(std::exchange(other.statement_, nullptr)),
      owned_(other.owned_) {}

SqlStatement::~SqlStatement() {
  if (statement_ == nullptr) return;
  if (owned_) {
    sqlite3_finalize(statement_);
    return;
  }
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);
}

absl::StatusOr<bool> SqlStatement::Step() {
  errno = 0;
  const int code = sqlite3_step(statement_);
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  return connection_->Error(sqlite3_sql(statement_), errno);
}

bool SqlStatement::IsNull(int column) const {
  return sqlite3_column_type(statement_, column) == SQLITE_NULL;
}

int64_t SqlStatement::Int(int column) const { return sqlite3_column_int64(statement_, column); }

double SqlStatement::Double(int column) const { return sqlite3_column_double(statement_, column); }

std::string_view SqlStatement::Bytes(int column) const {
  const void* data = sqlite3_column_blob(statement_, column);
  const int size = sqlite3_column_bytes(statement_, column);
  return {static_cast<const char*>(data), static_cast<size_t>(size)};
}

absl::StatusOr<std::unique_ptr<SqlConnection>> SqlConnection::Open(const std::string& path) {
  errno = 0;
  sqlite3* db = nullptr;
  const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
  const int code = sqlite3_open_v2(path.c_str(), &db, flags, nullptr);
  if (db == nullptr) return absl::InternalError(absl::StrCat("cannot open ", path, ": no memory"));
  std::unique_ptr<SqlConnection> connection(new SqlConnection(path, db));
  sqlite3_extended_result_codes(db, 1);
  if (code != SQLITE_OK) return connection->Error("open", errno);
  sqlite3_busy_timeout(db, kBusyTimeoutMs);
  return connection;
}

SqlConnection::~SqlConnection() {
  for (const auto& [sql, statement] : cache_) sqlite3_finalize(statement);
  sqlite3_close(db_);
}

absl::Status SqlConnection::Error(std::string_view action, int system_error) const {
  const int code = sqlite3_extended_errcode(db_);
  if (sqlite3_system_errno(db_) != 0) system_error = sqlite3_system_errno(db_);
  std::string message = absl::StrCat(path_, ": ", sqlite3_errmsg(db_), " (SQLite ", code);
  const bool of_system = (code & 0xff) == SQLITE_IOERR || (code & 0xff) == SQLITE_CANTOPEN;
  if (of_system) absl::StrAppend(&message, ", ", std::strerror(system_error));
  absl::StrAppend(&message, ") at: ", std::string(action.substr(0, 120)));
  return absl::Status(CodeOf(code, system_error), message);
}

absl::Status SqlConnection::Bind(sqlite3_stmt* statement, const std::vector<SqlValue>& values) {
  for (size_t i = 0; i < values.size(); ++i) {
    const int position = static_cast<int>(i) + 1;
    const SqlValue& value = values[i];
    int code = SQLITE_OK;
    if (const auto* integer = std::get_if<int64_t>(&value)) {
      code = sqlite3_bind_int64(statement, position, *integer);
    } else if (const auto* real = std::get_if<double>(&value)) {
      code = sqlite3_bind_double(statement, position, *real);
    } else if (const auto* text = std::get_if<std::string_view>(&value)) {
      code = sqlite3_bind_text64(statement, position, DataOf(*text), text->size(), SQLITE_TRANSIENT,
                                 SQLITE_UTF8);
    } else if (const auto* blob = std::get_if<SqlBlob>(&value)) {
      code = sqlite3_bind_blob64(statement, position, DataOf(blob->bytes), blob->bytes.size(),
                                 SQLITE_TRANSIENT);
    } else {
      code = sqlite3_bind_null(statement, position);
    }
    if (code != SQLITE_OK) return Error(sqlite3_sql(statement), 0);
  }
  return absl::OkStatus();
}

absl::StatusOr<SqlStatement> SqlConnection::Prepare(std::string_view sql,
                                                    const std::vector<SqlValue>& values) {
  errno = 0;
  sqlite3_stmt*& cached = cache_[std::string(sql)];
  if (cached == nullptr &&
      sqlite3_prepare_v3(db_, sql.data(), static_cast<int>(sql.size()), SQLITE_PREPARE_PERSISTENT,
                         &cached, nullptr) != SQLITE_OK) {
    return Error(sql, errno);
  }
  SqlStatement statement(this, cached, /*owned=*/false);
  LEMO_RETURN_IF_ERROR(Bind(cached, values));
  return statement;
}

absl::StatusOr<SqlStatement> SqlConnection::PrepareOnce(std::string_view sql,
                                                        const std::vector<SqlValue>& values) {
  errno = 0;
  sqlite3_stmt* prepared = nullptr;
  if (sqlite3_prepare_v2(db_, sql.data(), static_cast<int>(sql.size()), &prepared, nullptr) !=
      SQLITE_OK) {
    return Error(sql, errno);
  }
  SqlStatement statement(this, prepared, /*owned=*/true);
  LEMO_RETURN_IF_ERROR(Bind(prepared, values));
  return statement;
}

absl::StatusOr<int64_t> SqlConnection::Run(std::string_view sql,
                                           const std::vector<SqlValue>& values) {
  LEMO_ASSIGN_OR_RETURN(SqlStatement statement, Prepare(sql, values));
  for (;;) {
    LEMO_ASSIGN_OR_RETURN(const bool row, statement.Step());
    if (!row) return sqlite3_changes64(db_);
  }
}

absl::Status SqlConnection::Execute(const std::string& sql) {
  errno = 0;
  if (sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr) != SQLITE_OK) {
    return Error(sql, errno);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> SqlConnection::QueryText(std::string_view sql) {
  LEMO_ASSIGN_OR_RETURN(SqlStatement statement, PrepareOnce(sql));
  LEMO_ASSIGN_OR_RETURN(const bool row, statement.Step());
  if (!row) return absl::InternalError(absl::StrCat(path_, ": no row for ", std::string(sql)));
  return std::string(statement.Bytes(0));
}

absl::StatusOr<int64_t> SqlConnection::QueryInt(std::string_view sql) {
  LEMO_ASSIGN_OR_RETURN(SqlStatement statement, PrepareOnce(sql));
  LEMO_ASSIGN_OR_RETURN(const bool row, statement.Step());
  return row ? statement.Int(0) : 0;
}

}  // namespace lemo::coordinator
