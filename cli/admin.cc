// lemo admin backup|backups.
#include <algorithm>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/commands.h"
#include "cli/errors.h"
#include "cli/format.h"
#include "common/status_macros.h"

namespace lemo::cli {
namespace {

// A backup copies what cannot be linked, which takes as long as it takes.
constexpr absl::Duration kBackupTimeout = absl::Hours(6);

struct NoFlags {};

struct BackupFlags {
  std::string id;
};

absl::StatusOr<int> Backup(Context& context, const BackupFlags& flags) {
  LEMO_ASSIGN_OR_RETURN(Connection* const connection, context.connection());
  lemo::v1::CreateBackupRequest request;
  request.set_backup_id(flags.id);
  lemo::v1::Backup backup;
  LEMO_RETURN_IF_ERROR(connection->Call("make a backup", [&](grpc::ClientContext* rpc) {
    const absl::Duration timeout = std::max(connection->timeout(), kBackupTimeout);
    rpc->set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    return connection->admin().CreateBackup(rpc, request, &backup);
  }));
  if (!context.is_table()) {
    context.Print(backup);
    return kExitOk;
  }
  context.out() << absl::StrCat(backup.name(), ": ", backup.jobs(), " jobs, ", backup.files(),
                                " files, ", HumanBytes(backup.bytes()), "\n", backup.path(),
                                " on the coordinator's host\n");
  return kExitOk;
}

absl::StatusOr<int> List(Context& context, const NoFlags&) {
  LEMO_ASSIGN_OR_RETURN(Connection* const connection, context.connection());
  lemo::v1::ListBackupsResponse backups;
  LEMO_RETURN_IF_ERROR(connection->Call("list backups", [&](grpc::ClientContext* rpc) {
    return connection->admin().ListBackups(rpc, lemo::v1::ListBackupsRequest(), &backups);
  }));
  if (!context.is_table()) {
    context.Print(backups);
    return kExitOk;
  }
  Table table({"name", "created", "jobs", "files", "size", "path"});
  for (const lemo::v1::Backup& backup : backups.backups()) {
    table.Add({backup.name(), Time(backup.create_time()), absl::StrCat(backup.jobs()),
               absl::StrCat(backup.files()), HumanBytes(backup.bytes()), backup.path()});
  }
  context.out() << table.ToString();
  return kExitOk;
}

}  // namespace

void AddAdminCommands(CLI::App& app, Context& context) {
  CLI::App& admin = *app.add_subcommand("admin", "For who runs the coordinator");
  admin.require_subcommand(1);
  auto flags = std::make_shared<BackupFlags>();
  CLI::App* backup =
      AddCommand(admin, context, "backup", "Copy all that the coordinator keeps, while it runs",
                 flags, &Backup);
  backup->add_option("--id", flags->id, "What the backup is called [the time]")->type_name("ID");
  AddCommand(admin, context, "backups", "List backups", std::make_shared<NoFlags>(), &List);
}

}  // namespace lemo::cli
