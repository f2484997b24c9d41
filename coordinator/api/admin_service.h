// AdminService: backups.
#pragma once

#include "coordinator/runtime/backups.h"
#include "lemo/v1/admin_service.grpc.pb.h"

namespace lemo::coordinator {

// The backups outlive the service.
class AdminServiceImpl final : public lemo::v1::AdminService::Service {
 public:
  explicit AdminServiceImpl(Backups* backups) : backups_(backups) {}

  grpc::Status CreateBackup(grpc::ServerContext*, const lemo::v1::CreateBackupRequest*,
                            lemo::v1::Backup*) override;
  grpc::Status ListBackups(grpc::ServerContext*, const lemo::v1::ListBackupsRequest*,
                           lemo::v1::ListBackupsResponse*) override;

 private:
  Backups* const backups_;
};

}  // namespace lemo::coordinator
