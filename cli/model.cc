// lemo model add|list|rm.
#include <algorithm>
#include <filesystem>
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

struct AddFlags {
  std::string name;
  std::string path;
};

struct NameFlags {
  std::string name;
};

struct NoFlags {};

void PrintModels(Context& context, const lemo::v1::ListModelsResponse& models) {
  if (!context.is_table()) return context.Print(models);
  Table table({"name", "family", "parameters", "size", "path"});
  for (const lemo::v1::Model& model : models.models()) {
    table.Add({model.name(), model.family(), HumanCount(model.parameters()),
               HumanBytes(model.bytes()), model.path()});
  }
  context.out() << table.ToString();
}

absl::StatusOr<int> Add(Context& context, const AddFlags& flags) {
  LEMO_ASSIGN_OR_RETURN(const std::string name, ResourceName("models/", flags.name));
  LEMO_ASSIGN_OR_RETURN(Connection* const connection, context.connection());
  lemo::v1::AddModelRequest request;
  request.set_model_id(name.substr(name.find('/') + 1));
  // The directory is the coordinator's; one that is not here may well be there.
  std::error_code error;
  const std::filesystem::path path =
      std::filesystem::weakly_canonical(std::filesystem::absolute(flags.path), error);
  request.set_path(error ? flags.path : path.string());
  lemo::v1::ListModelsResponse models;
  LEMO_RETURN_IF_ERROR(connection->Call("add " + name, [&](grpc::ClientContext* rpc) {
    // All of its files are read.
    rpc->set_deadline(
        absl::ToChronoTime(absl::Now() + std::max(connection->timeout(), absl::Hours(1))));
    return connection->models().AddModel(rpc, request, models.add_models());
  }));
  PrintModels(context, models);
  return kExitOk;
}

absl::StatusOr<int> List(Context& context, const NoFlags&) {
  LEMO_ASSIGN_OR_RETURN(Connection* const connection, context.connection());
  lemo::v1::ListModelsResponse all;
  lemo::v1::ListModelsRequest request;
  request.set_page_size(200);
  do {
    lemo::v1::ListModelsResponse page;
    LEMO_RETURN_IF_ERROR(connection->Call("list models", [&](grpc::ClientContext* rpc) {
      return connection->models().ListModels(rpc, request, &page);
    }));
    for (lemo::v1::Model& model : *page.mutable_models()) *all.add_models() = std::move(model);
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  PrintModels(context, all);
  return kExitOk;
}

absl::StatusOr<int> Remove(Context& context, const NameFlags& flags) {
  LEMO_ASSIGN_OR_RETURN(const std::string name, ResourceName("models/", flags.name));
  LEMO_ASSIGN_OR_RETURN(Connection* const connection, context.connection());
  lemo::v1::DeleteModelRequest request;
  request.set_name(name);
  google::protobuf::Empty nothing;
  LEMO_RETURN_IF_ERROR(connection->Call("remove " + name, [&](grpc::ClientContext* rpc) {
    return connection->models().DeleteModel(rpc, request, &nothing);
  }));
  if (context.is_table()) {
    context.out() << "removed " << name << " (the directory stays)\n";
  } else {
    PrintJson({{"removed", name}}, context.flags.output, context.out());
  }
  return kExitOk;
}

}  // namespace

void AddModelCommands(CLI::App& app, Context& context) {
  CLI::App& model = *app.add_subcommand("model", "Base models that the service knows");
  model.require_subcommand(1);

  auto add_flags = std::make_shared<AddFlags>();
  CLI::App* add = AddCommand(model, context, "add",
                             "Register a Hugging Face model directory of the coordinator's host",
                             add_flags, &Add);
  add->add_option("NAME", add_flags->name, "What jobs call it")->required()->type_name("");
  add->add_option("PATH", add_flags->path, "The directory")->required()->type_name("");

  AddCommand(model, context, "list", "List models", std::make_shared<NoFlags>(), &List);

  auto remove_flags = std::make_shared<NameFlags>();
  CLI::App* remove = AddCommand(model, context, "rm", "Forget a model; its directory stays",
                                remove_flags, &Remove);
  remove->add_option("NAME", remove_flags->name, "Name of the model")->required()->type_name("");
}

}  // namespace lemo::cli
