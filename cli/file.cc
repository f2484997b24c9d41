// lemo file put|list|get|rm.
#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/download.h"
#include "cli/errors.h"
#include "cli/format.h"
#include "cli/upload.h"
#include "common/status_macros.h"

namespace lemo::cli {
namespace {

namespace fs = std::filesystem;

struct PutFlags {
  std::vector<std::string> paths;
  std::string name;
};

struct GetFlags {
  std::string file;
  std::string out;
  bool replace = false;
};

struct ListFlags {
  int limit = 100;
};

struct RemoveFlags {
  std::vector<std::string> files;
};

void PrintFiles(Context& context, const lemo::v1::ListFilesResponse& files) {
  if (!context.is_table()) return context.Print(files);
  Table table({"name", "display name", "bytes", "created"});
  for (const lemo::v1::File& file : files.files()) {
    table.Add(
        {file.name(), file.display_name(), HumanCount(file.bytes()), Time(file.create_time())});
  }
  context.out() << table.ToString();
}

absl::StatusOr<int> Put(Context& context, const PutFlags& flags) {
  if (!flags.name.empty() && flags.paths.size() > 1) {
    return absl::InvalidArgumentError("--name is for one file; several were given");
  }
  LEMO_ASSIGN_OR_RETURN(Connection* const connection, context.connection());
  lemo::v1::ListFilesResponse files;
  for (const std::string& path : flags.paths) {
    const std::string name = flags.name.empty() ? fs::path(path).filename().string() : flags.name;
    LEMO_ASSIGN_OR_RETURN(*files.add_files(), Upload(*connection, path, name, context.err()));
  }
  PrintFiles(context, files);
  return kExitOk;
}

absl::StatusOr<int> List(Context& context, const ListFlags& flags) {
  LEMO_ASSIGN_OR_RETURN(Connection* const connection, context.connection());
  lemo::v1::ListFilesResponse all;
  lemo::v1::ListFilesRequest request;
  do {
    request.set_page_size(std::min(200, flags.limit - all.files_size()));
    lemo::v1::ListFilesResponse page;
    LEMO_RETURN_IF_ERROR(connection->Call("list files", [&](grpc::ClientContext* rpc) {
      return connection->files().ListFiles(rpc, request, &page);
    }));
    for (lemo::v1::File& file : *page.mutable_files()) *all.add_files() = std::move(file);
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty() && all.files_size() < flags.limit);
  PrintFiles(context, all);
  if (!request.page_token().empty()) context.err() << "more files exist; --limit shows them\n";
  return kExitOk;
}

absl::StatusOr<int> Get(Context& context, const GetFlags& flags) {
  LEMO_ASSIGN_OR_RETURN(const std::string name, ResourceName("files/", flags.file));
  LEMO_ASSIGN_OR_RETURN(Connection* const connection, context.connection());
  lemo::v1::GetFileRequest get;
  get.set_name(name);
  lemo::v1::File file;
  LEMO_RETURN_IF_ERROR(connection->Call("get " + name, [&](grpc::ClientContext* rpc) {
    return connection->files().GetFile(rpc, get, &file);
  }));
  fs::path target = flags.out;
  if (target.empty()) {
    LEMO_ASSIGN_OR_RETURN(target, PathBelow(".", file.display_name()));
  }
  CatchInterrupts();
  lemo::v1::DownloadFileRequest request;
  request.set_name(name);
  const Download download{
      .name = name,
      .bytes = file.bytes(),
      .sha256 = file.sha256(),
      .open = [&](int64_t offset, grpc::ClientContext* rpc, grpc::CompletionQueue* queue) {
        request.set_offset(offset);
        return connection->files().PrepareAsyncDownloadFile(rpc, request, queue);
      }};
  LEMO_RETURN_IF_ERROR(
      Fetch(*connection, download, {.target = target, .replace = flags.replace}, context.err()));
  if (context.is_table()) {
    context.out() << target.string() << "\n";
  } else {
    nlohmann::ordered_json json = ToJson(file);
    json["file"] = target.string();
    PrintJson(json, context.flags.output, context.out());
  }
  return kExitOk;
}

absl::StatusOr<int> Remove(Context& context, const RemoveFlags& flags) {
  LEMO_ASSIGN_OR_RETURN(Connection* const connection, context.connection());
  nlohmann::ordered_json removed = nlohmann::ordered_json::array();
  for (const std::string& file : flags.files) {
    LEMO_ASSIGN_OR_RETURN(const std::string name, ResourceName("files/", file));
    lemo::v1::DeleteFileRequest request;
    request.set_name(name);
    google::protobuf::Empty nothing;
    LEMO_RETURN_IF_ERROR(connection->Call("remove " + name, [&](grpc::ClientContext* rpc) {
      return connection->files().DeleteFile(rpc, request, &nothing);
    }));
    if (context.is_table()) context.out() << "removed " << name << "\n";
    removed.push_back(name);
  }
  if (!context.is_table()) {
    PrintJson({{"removed", std::move(removed)}}, context.flags.output, context.out());
  }
  return kExitOk;
}

}  // namespace

void AddFileCommands(CLI::App& app, Context& context) {
  CLI::App& file = *app.add_subcommand("file", "Training data on the service");
  file.require_subcommand(1);

  auto put_flags = std::make_shared<PutFlags>();
  CLI::App* put =
      AddCommand(file, context, "put", "Upload files; what is there already does not travel again",
                 put_flags, &Put);
  put->add_option("PATH", put_flags->paths, "The files")->required()->type_name("");
  put->add_option("--name", put_flags->name, "What lists show [the file's name]")
      ->type_name("NAME");

  auto list_flags = std::make_shared<ListFlags>();
  CLI::App* list = AddCommand(file, context, "list", "List files", list_flags, &List);
  list->add_option("--limit", list_flags->limit, "At most so many [100]")
      ->check(CLI::Range(1, 1000000).description(""))
      ->type_name("N");

  auto get_flags = std::make_shared<GetFlags>();
  CLI::App* get = AddCommand(file, context, "get", "Bring a file here, verified", get_flags, &Get);
  get->add_option("FILE", get_flags->file, "Name of the file")->required()->type_name("");
  get->add_option("--out", get_flags->out, "Where to [its display name]")->type_name("PATH");
  get->add_flag("--replace", get_flags->replace,
                "Also where a file of other contents stands in the way");

  auto remove_flags = std::make_shared<RemoveFlags>();
  CLI::App* remove = AddCommand(file, context, "rm", "Remove files that no job needs any more",
                                remove_flags, &Remove);
  remove->add_option("FILE", remove_flags->files, "Names of the files")->required()->type_name("");
}

}  // namespace lemo::cli
