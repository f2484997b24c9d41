#include "coordinator/api/admin_service.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "coordinator/api/errors.h"
#include "coordinator/api/names.h"

namespace lemo::coordinator {

grpc::Status AdminServiceImpl::CreateBackup(grpc::ServerContext* context,
                                            const lemo::v1::CreateBackupRequest* request,
                                            lemo::v1::Backup* backup) {
  const std::string& id = request->backup_id();
  if (!id.empty() && (!IsId(id) || absl::EndsWith(id, ".tmp"))) {
    Violations violations;
    violations.Add("backup_id",
                   "1 to 63 letters, digits, `-`, `_`, `.`, the first a letter or a digit, and not "
                   "`.tmp` at the end");
    return InvalidArgument(violations);
  }
  absl::StatusOr<lemo::v1::Backup> made =
      backups_->Create(id, absl::Now(), [context] { return !context->IsCancelled(); });
  if (!made.ok()) return ToGrpc(made.status());
  *backup = *std::move(made);
  return grpc::Status::OK;
}

grpc::Status AdminServiceImpl::ListBackups(grpc::ServerContext*,
                                           const lemo::v1::ListBackupsRequest*,
                                           lemo::v1::ListBackupsResponse* response) {
  absl::StatusOr<std::vector<lemo::v1::Backup>> backups = backups_->List();
  if (!backups.ok()) return ToGrpc(backups.status());
  for (lemo::v1::Backup& backup : *backups) *response->add_backups() = std::move(backup);
  return grpc::Status::OK;
}

}  // namespace lemo::coordinator
