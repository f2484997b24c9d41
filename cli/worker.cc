// lemo worker list|cordon|uncordon|drain.
#include <map>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/commands.h"
#include "cli/errors.h"
#include "cli/format.h"
#include "common/status_macros.h"

namespace lemo::cli {
namespace {

struct NoFlags {};

struct WorkerFlags {
  std::string worker;
};

// "4 x H100 80GB (79.6 GiB)".
std::string DevicesText(const lemo::v1::Worker& worker) {
  std::map<std::string, int> kinds;
  for (const lemo::v1::Device& device : worker.devices()) {
    const std::string type =
        device.type().empty() ? lemo::v1::Device::Kind_Name(device.kind()) : device.type();
    ++kinds[absl::StrCat(type, " (", HumanBytes(device.memory_bytes()), ")")];
  }
  return absl::StrJoin(kinds, ", ", [](std::string* out, const auto& kind) {
    absl::StrAppend(out, kind.second, " x ", kind.first);
  });
}

void PrintWorkers(Context& context, const lemo::v1::ListWorkersResponse& workers) {
  if (!context.is_table()) return context.Print(workers);
  Table table({"name", "host", "state", "devices", "memory", "version", "jobs"});
  for (const lemo::v1::Worker& worker : workers.workers()) {
    table.Add({worker.name(), worker.host(), lemo::v1::Worker::State_Name(worker.state()),
               DevicesText(worker), HumanBytes(worker.host_memory_bytes()), worker.version(),
               absl::StrJoin(worker.jobs(), ", ")});
  }
  context.out() << table.ToString();
}

absl::StatusOr<int> List(Context& context, const NoFlags&) {
  LEMO_ASSIGN_OR_RETURN(Connection* const connection, context.connection());
  lemo::v1::ListWorkersResponse all;
  lemo::v1::ListWorkersRequest request;
  request.set_page_size(200);
  do {
    lemo::v1::ListWorkersResponse page;
    LEMO_RETURN_IF_ERROR(connection->Call("list workers", [&](grpc::ClientContext* rpc) {
      return connection->cluster().ListWorkers(rpc, request, &page);
    }));
    for (lemo::v1::Worker& worker : *page.mutable_workers()) {
      *all.add_workers() = std::move(worker);
    }
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  PrintWorkers(context, all);
  return kExitOk;
}

absl::StatusOr<int> SetCordon(Context& context, const WorkerFlags& flags, bool uncordon) {
  LEMO_ASSIGN_OR_RETURN(const std::string name, ResourceName("workers/", flags.worker));
  LEMO_ASSIGN_OR_RETURN(Connection* const connection, context.connection());
  lemo::v1::CordonWorkerRequest request;
  request.set_name(name);
  request.set_uncordon(uncordon);
  lemo::v1::ListWorkersResponse workers;
  LEMO_RETURN_IF_ERROR(connection->Call(
      absl::StrCat(uncordon ? "uncordon " : "cordon ", name), [&](grpc::ClientContext* rpc) {
        return connection->cluster().CordonWorker(rpc, request, workers.add_workers());
      }));
  PrintWorkers(context, workers);
  return kExitOk;
}

absl::StatusOr<int> Cordon(Context& context, const WorkerFlags& flags) {
  return SetCordon(context, flags, /*uncordon=*/false);
}

absl::StatusOr<int> Uncordon(Context& context, const WorkerFlags& flags) {
  return SetCordon(context, flags, /*uncordon=*/true);
}

absl::StatusOr<int> Drain(Context& context, const WorkerFlags& flags) {
  LEMO_ASSIGN_OR_RETURN(const std::string name, ResourceName("workers/", flags.worker));
  LEMO_ASSIGN_OR_RETURN(Connection* const connection, context.connection());
  lemo::v1::DrainWorkerRequest request;
  request.set_name(name);
  lemo::v1::ListWorkersResponse workers;
  LEMO_RETURN_IF_ERROR(connection->Call("drain " + name, [&](grpc::ClientContext* rpc) {
    return connection->cluster().DrainWorker(rpc, request, workers.add_workers());
  }));
  PrintWorkers(context, workers);
  return kExitOk;
}

}  // namespace

void AddWorkerCommands(CLI::App& app, Context& context) {
  CLI::App& worker = *app.add_subcommand("worker", "The machines that train");
  worker.require_subcommand(1);
  AddCommand(worker, context, "list", "List workers", std::make_shared<NoFlags>(), &List);
  auto add = [&](const char* name, const char* description,
                 absl::StatusOr<int> (*action)(Context&, const WorkerFlags&)) {
    auto flags = std::make_shared<WorkerFlags>();
    CLI::App* command = AddCommand(worker, context, name, description, flags, action);
    command->add_option("WORKER", flags->worker, "Name of the worker")->required()->type_name("");
  };
  add("cordon", "Give a worker no new jobs; those it has go on", &Cordon);
  add("uncordon", "Take a cordon, or a drain, back", &Uncordon);
  add("drain", "Cordon a worker, and let its jobs checkpoint and move", &Drain);
}

}  // namespace lemo::cli
