#include "cli/local_inputs.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <map>
#include <string_view>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/format.h"
#include "cli/upload.h"
#include "common/message_json.h"
#include "common/status_macros.h"

namespace lemo::cli {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxSuffix = 20;

bool IsFile(const std::string& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

bool IsDirectory(const std::string& path) {
  std::error_code error;
  return fs::is_directory(path, error);
}

void CheckFiles(const google::protobuf::RepeatedPtrField<lemo::v1::DataFile>& files,
                const std::string& list, Violations* violations) {
  for (int i = 0; i < files.size(); ++i) {
    const std::string& path = files[i].path();
    if (path.empty() || IsFile(path) || absl::StartsWith(path, "files/")) continue;
    violations->Add(
        JoinPath(ElementPath(list, i), "path"),
        absl::StrCat("there is no file ", path, " here (looked from ", fs::current_path().string(),
                     "), and it is not the name of an uploaded one (files/...)"));
  }
}

}  // namespace

void CheckLocalInputs(const lemo::v1::JobSpec& spec, Violations* violations) {
  CheckFiles(spec.run().data().train(), "run.data.train", violations);
  CheckFiles(spec.run().data().eval(), "run.data.eval", violations);
  const std::string& model = spec.run().model().path();
  if (model.empty() || IsDirectory(model) || absl::StartsWith(model, "models/")) return;
  violations->Add("run.model.path",
                  absl::StrCat("there is no directory ", model, " here (looked from ",
                               fs::current_path().string(),
                               "), and it is not the name of a known model (models/...); `lemo "
                               "model list` shows those"));
}

absl::Status SendLocalInputs(const Connection& connection, lemo::v1::JobSpec* spec,
                             std::ostream& err) {
  std::map<std::string, std::string> sent;  // a path may stand in both lists
  auto send = [&](google::protobuf::RepeatedPtrField<lemo::v1::DataFile>* files) -> absl::Status {
    for (lemo::v1::DataFile& data : *files) {
      if (!IsFile(data.path())) continue;
      std::string& name = sent[data.path()];
      if (name.empty()) {
        LEMO_ASSIGN_OR_RETURN(
            const lemo::v1::File file,
            Upload(connection, data.path(), fs::path(data.path()).filename().string(), err));
        name = file.name();
        err << Printable(data.path()) << " is " << Printable(name) << " ("
            << HumanBytes(file.bytes()) << ")\n";
      }
      data.set_path(name);
    }
    return absl::OkStatus();
  };
  if (!spec->has_run()) return absl::OkStatus();
  lemo::v1::RunSpec* run = spec->mutable_run();
  if (run->has_data()) {
    LEMO_RETURN_IF_ERROR(send(run->mutable_data()->mutable_train()));
    LEMO_RETURN_IF_ERROR(send(run->mutable_data()->mutable_eval()));
  }
  if (!IsDirectory(run->model().path())) return absl::OkStatus();
  std::error_code error;
  const fs::path directory = fs::canonical(run->model().path(), error);
  if (error) {
    return absl::NotFoundError(absl::StrCat(run->model().path(), ": ", error.message()));
  }
  LEMO_ASSIGN_OR_RETURN(
      const lemo::v1::Model model,
      RegisterModel(connection, ModelId(directory.filename().string()), directory.string()));
  err << Printable(run->model().path()) << " is " << Printable(model.name()) << "\n";
  run->mutable_model()->set_path(model.name());
  return absl::OkStatus();
}

std::string ModelId(const std::string& text) {
  std::string id;
  for (char c : text.substr(0, 63)) {
    const bool good =
        std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.';
    id += good ? c : '-';
  }
  return id.empty() ? "model" : id;
}

absl::StatusOr<lemo::v1::Model> RegisterModel(const Connection& connection, const std::string& id,
                                              const std::string& path) {
  for (int suffix = 1; suffix <= kMaxSuffix; ++suffix) {
    const std::string tail = suffix == 1 ? "" : absl::StrCat("-", suffix);
    const std::string name = id.substr(0, 63 - tail.size()) + tail;
    lemo::v1::AddModelRequest request;
    request.set_model_id(name);
    request.set_path(path);
    lemo::v1::Model model;
    const absl::Status added = connection.Call(
        absl::StrCat("register the model ", path), [&](grpc::ClientContext* context) {
          // All of its files are read.
          context->set_deadline(
              absl::ToChronoTime(absl::Now() + std::max(connection.timeout(), absl::Hours(1))));
          return connection.models().AddModel(context, request, &model);
        });
    if (added.ok()) return model;
    if (!absl::IsAlreadyExists(added)) return added;
    lemo::v1::GetModelRequest get;
    get.set_name(absl::StrCat("models/", name));
    LEMO_RETURN_IF_ERROR(
        connection.Call(absl::StrCat("get models/", name), [&](grpc::ClientContext* context) {
          return connection.models().GetModel(context, get, &model);
        }));
    if (model.path() == path) return model;
  }
  return absl::AlreadyExistsError(
      absl::StrCat("the service has ", kMaxSuffix, " other models called ", id,
                   "...; name this one with `lemo model add NAME ", path, "`"));
}

}  // namespace lemo::cli
