// Files and models.
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/store/job_row.h"
#include "coordinator/store/page_token.h"
#include "coordinator/store/sqlite_store.h"

namespace lemo::coordinator {
namespace {

constexpr char kFilesScope[] = "files";

// The first column of the first row as a message; false when there is no row.
absl::StatusOr<bool> ReadMessage(SqlConnection& db, std::string_view sql, const std::string& key,
                                 google::protobuf::MessageLite* message) {
  LEMO_ASSIGN_OR_RETURN(SqlStatement found, db.Prepare(sql, {key}));
  LEMO_ASSIGN_OR_RETURN(const bool there, found.Step());
  if (there) LEMO_RETURN_IF_ERROR(ParseStored(found.Bytes(0), key, message));
  return there;
}

}  // namespace

absl::Status SqliteStore::CreateFile(const lemo::v1::File& file, const std::string& upload_id) {
  const std::string bytes = SerializeDeterministic(file);
  return queue_.Commit([&](SqlConnection& db) -> absl::Status {
    LEMO_ASSIGN_OR_RETURN(
        const int64_t inserted,
        db.Run("INSERT INTO files (name, upload_id, sha256, file) VALUES (?,?,?,?) "
               "ON CONFLICT DO NOTHING",
               {file.name(), upload_id.empty() ? SqlValue() : SqlValue(upload_id), file.sha256(),
                SqlBlob(bytes)}));
    if (inserted == 1) return absl::OkStatus();
    return absl::AlreadyExistsError(
        absl::StrCat(file.name(), ": the file, or its upload ", upload_id, ", is there already"));
  });
}

absl::StatusOr<lemo::v1::File> SqliteStore::GetFile(const std::string& name) {
  const ReaderPool::Lease db = readers_->Take();
  lemo::v1::File file;
  LEMO_ASSIGN_OR_RETURN(const bool there,
                        ReadMessage(*db, "SELECT file FROM files WHERE name = ?", name, &file));
  if (!there) return absl::NotFoundError(absl::StrCat(name, ": no such file"));
  return file;
}

absl::StatusOr<std::optional<lemo::v1::File>> SqliteStore::FindUpload(
    const std::string& upload_id) {
  const ReaderPool::Lease db = readers_->Take();
  lemo::v1::File file;
  LEMO_ASSIGN_OR_RETURN(
      const bool there,
      ReadMessage(*db, "SELECT file FROM files WHERE upload_id = ?", upload_id, &file));
  if (!there) return std::nullopt;
  return file;
}

absl::StatusOr<Store::FilePage> SqliteStore::ListFiles(int page_size,
                                                       const std::string& page_token) {
  PagePosition last{0, std::numeric_limits<int64_t>::max()};
  if (!page_token.empty()) {
    LEMO_ASSIGN_OR_RETURN(last, DecodePageToken(token_key_, kFilesScope, page_token));
  }
  page_size = EffectivePageSize(page_size);
  const ReaderPool::Lease db = readers_->Take();
  LEMO_ASSIGN_OR_RETURN(
      SqlStatement rows,
      db->Prepare("SELECT number, file FROM files WHERE number < ? ORDER BY number DESC LIMIT ?",
                  {last.number, int64_t{page_size} + 1}));
  FilePage page;
  for (;;) {
    LEMO_ASSIGN_OR_RETURN(const bool row, rows.Step());
    if (!row) return page;
    if (static_cast<int>(page.files.size()) == page_size) {
      page.next_token = EncodePageToken(token_key_, kFilesScope, last);
      return page;
    }
    last.number = rows.Int(0);
    LEMO_RETURN_IF_ERROR(ParseStored(rows.Bytes(1), absl::StrCat("file number ", last.number),
                                     &page.files.emplace_back()));
  }
}

absl::Status SqliteStore::DeleteFile(const std::string& name) {
  return queue_.Commit([&](SqlConnection& db) -> absl::Status {
    LEMO_ASSIGN_OR_RETURN(const int64_t deleted,
                          db.Run("DELETE FROM files WHERE name = ?", {name}));
    if (deleted == 1) return absl::OkStatus();
    return absl::NotFoundError(absl::StrCat(name, ": no such file"));
  });
}

absl::StatusOr<bool> SqliteStore::HasContent(const std::string& sha256, bool checkpoint) {
  const ReaderPool::Lease db = readers_->Take();
  LEMO_ASSIGN_OR_RETURN(
      SqlStatement found,
      db->Prepare("SELECT 1 FROM contents WHERE sha256 = ?1 AND checkpoint = ?2 UNION ALL "
                  "SELECT 1 FROM files WHERE sha256 = ?1 AND ?2 = 0 LIMIT 1",
                  {sha256, int64_t{checkpoint}}));
  return found.Step();
}

absl::Status SqliteStore::CreateModel(const lemo::v1::Model& model) {
  const std::string bytes = SerializeDeterministic(model);
  return queue_.Commit([&](SqlConnection& db) -> absl::Status {
    LEMO_ASSIGN_OR_RETURN(
        const int64_t inserted,
        db.Run("INSERT INTO models (name, model) VALUES (?,?) ON CONFLICT DO NOTHING",
               {model.name(), SqlBlob(bytes)}));
    if (inserted == 1) return absl::OkStatus();
    return absl::AlreadyExistsError(absl::StrCat(model.name(), ": the model is there already"));
  });
}

absl::Status SqliteStore::ReplaceModel(const lemo::v1::Model& model) {
  const std::string bytes = SerializeDeterministic(model);
  return queue_.Commit([&](SqlConnection& db) -> absl::Status {
    LEMO_ASSIGN_OR_RETURN(
        const int64_t updated,
        db.Run("UPDATE models SET model = ? WHERE name = ?", {SqlBlob(bytes), model.name()}));
    if (updated == 1) return absl::OkStatus();
    return absl::NotFoundError(absl::StrCat(model.name(), ": no such model"));
  });
}

absl::StatusOr<lemo::v1::Model> SqliteStore::GetModel(const std::string& name) {
  const ReaderPool::Lease db = readers_->Take();
  lemo::v1::Model model;
  LEMO_ASSIGN_OR_RETURN(const bool there,
                        ReadMessage(*db, "SELECT model FROM models WHERE name = ?", name, &model));
  if (!there) return absl::NotFoundError(absl::StrCat(name, ": no such model"));
  return model;
}

absl::StatusOr<std::vector<lemo::v1::Model>> SqliteStore::ListModels() {
  const ReaderPool::Lease db = readers_->Take();
  LEMO_ASSIGN_OR_RETURN(SqlStatement rows,
                        db->Prepare("SELECT name, model FROM models ORDER BY name"));
  std::vector<lemo::v1::Model> models;
  for (;;) {
    LEMO_ASSIGN_OR_RETURN(const bool row, rows.Step());
    if (!row) return models;
    LEMO_RETURN_IF_ERROR(ParseStored(rows.Bytes(1), rows.Bytes(0), &models.emplace_back()));
  }
}

absl::Status SqliteStore::DeleteModel(const std::string& name) {
  return queue_.Commit([&](SqlConnection& db) -> absl::Status {
    LEMO_ASSIGN_OR_RETURN(const int64_t deleted,
                          db.Run("DELETE FROM models WHERE name = ?", {name}));
    if (deleted == 1) return absl::OkStatus();
    return absl::NotFoundError(absl::StrCat(name, ": no such model"));
  });
}

}  // namespace lemo::coordinator
