#include "coordinator/api/model_service.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/files.h"
#include "common/model_files.h"
#include "common/safetensors.h"
#include "common/status_macros.h"
#include "coordinator/api/errors.h"
#include "coordinator/api/names.h"
#include "coordinator/core/timestamp.h"
#include "google/protobuf/util/time_util.h"
#include "nlohmann/json.hpp"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kConfigLimit = int64_t{16} << 20;
constexpr int64_t kChunkBytes = int64_t{1} << 20;

absl::Status NotAModel(const fs::path& path, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat("path: ", path.string(), ": ", why));
}

grpc::Status Changed(const lemo::v1::Model& model, const fs::path& path, const std::string& how) {
  const std::string id = model.name().substr(model.name().find('/') + 1);
  return PreconditionFailed(
      "MODEL_CHANGED", model.name(),
      absl::StrCat(path.string(), " ", how, " since ", model.name(),
                   " was added: put the file back, or `lemo model rm ", id, "`, `lemo model add ",
                   id, " ", model.path(), "` and submit again"));
}

// Sends the file from `offset` on, unless it is not what it was when the model was added. Times and
// sizes tell that here; who receives it compares the checksum.
grpc::Status SendModelFile(const lemo::v1::Model& model, const lemo::v1::ModelFile& file,
                           int64_t offset, grpc::ServerWriter<lemo::v1::DataChunk>* writer) {
  using google::protobuf::util::TimeUtil;
  const fs::path path = fs::path(model.path()) / file.path();
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return Changed(model, path, "cannot be read any more");
  absl::Cleanup close = [fd] { ::close(fd); };
  struct stat info;
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || info.st_size != file.bytes()) {
    return Changed(model, path, "has another size");
  }
  const int64_t written_ns = int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
  if (written_ns > TimeUtil::TimestampToNanoseconds(model.create_time())) {
    return Changed(model, path, "was written again");
  }
  lemo::v1::DataChunk chunk;
  std::string* const data = chunk.mutable_data();
  do {
    data->resize(static_cast<size_t>(std::min(kChunkBytes, file.bytes() - offset)));
    const ssize_t got = ::pread(fd, data->data(), data->size(), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ToGrpc(ErrnoStatus(errno, "read", path));
    if (got == 0 && !data->empty()) return Changed(model, path, "became shorter");
    data->resize(static_cast<size_t>(got));
    chunk.set_offset(offset);
    offset += got;
    if (offset == file.bytes()) chunk.set_sha256(file.sha256());
    if (!writer->Write(chunk)) return grpc::Status::CANCELLED;
  } while (offset < file.bytes());
  return grpc::Status::OK;
}

}  // namespace

absl::StatusOr<lemo::v1::Model> InspectModel(const std::string& path,
                                             const std::function<bool()>& go_on) {
  const fs::path directory = path;
  if (!directory.is_absolute()) return NotAModel(directory, "must be absolute");
  const absl::StatusOr<std::string> config_text = ReadFile(directory / "config.json", kConfigLimit);
  if (!config_text.ok()) return NotAModel(directory, std::string(config_text.status().message()));
  const auto config = nlohmann::json::parse(*config_text, nullptr, /*allow_exceptions=*/false);
  const auto type = config.is_object() ? config.find("model_type") : config.end();
  if (!config.is_object() || type == config.end() || !type->is_string()) {
    return NotAModel(directory / "config.json", "is not a Hugging Face config with a model_type");
  }
  lemo::v1::Model model;
  model.set_path(directory.lexically_normal().string());
  model.set_family(type->get<std::string>());

  absl::StatusOr<std::vector<std::string>> paths = ListModelFiles(directory);
  if (!paths.ok()) return NotAModel(directory, std::string(paths.status().message()));
  const auto is_weights = [](const std::string& file) {
    return fs::path(file).extension() == ".safetensors";
  };
  if (std::none_of(paths->begin(), paths->end(), is_weights)) {
    return NotAModel(directory, "has no safetensors files");
  }
  std::string listing;
  for (const std::string& path_within : *paths) {
    const fs::path file_path = directory / path_within;
    if (is_weights(path_within)) {
      LEMO_ASSIGN_OR_RETURN(const SafetensorsFile tensors, SafetensorsFile::Open(file_path));
      for (const auto& [name, tensor] : tensors.tensors()) {
        model.set_parameters(model.parameters() +
                             static_cast<int64_t>(tensor.bytes.size()) / ElementBytes(tensor.type));
      }
    }
    lemo::v1::ModelFile& file = *model.add_files();
    file.set_path(path_within);
    LEMO_ASSIGN_OR_RETURN(*file.mutable_sha256(), Sha256HexOfFile(file_path, go_on));
    std::error_code error;
    file.set_bytes(static_cast<int64_t>(fs::file_size(file_path, error)));
    if (error) return NotAModel(file_path, error.message());
    model.set_bytes(model.bytes() + file.bytes());
    absl::StrAppend(&listing, file.path(), " ", file.bytes(), " ", file.sha256(), "\n");
  }
  model.set_fingerprint(Sha256Hex(listing));
  return model;
}

grpc::Status ModelServiceImpl::AddModel(grpc::ServerContext* context,
                                        const lemo::v1::AddModelRequest* request,
                                        lemo::v1::Model* model) {
  Violations violations;
  if (!IsId(request->model_id())) {
    violations.Add("model_id",
                   "1 to 63 letters, digits, `-`, `_`, `.`, the first a letter or a digit");
  }
  if (request->path().empty()) violations.Add("path", "is empty");
  if (!violations.empty()) return InvalidArgument(violations);
  const std::string name = "models/" + request->model_id();
  // One that an older version has stored, without its files, is looked at again.
  const auto known = store_->GetModel(name);
  const bool incomplete = known.ok() && known->files().empty() &&
                          known->path() == fs::path(request->path()).lexically_normal().string();
  if (known.ok() && !incomplete) {
    return ToGrpc(absl::AlreadyExistsError(absl::StrCat(name, " is ", known->path())));
  }
  // Before anything is read: what changes from now on is newer than the model.
  const google::protobuf::Timestamp time = ToTimestamp(absl::Now());
  absl::StatusOr<lemo::v1::Model> inspected =
      InspectModel(request->path(), [context] { return !context->IsCancelled(); });
  if (!inspected.ok()) return ToGrpc(inspected.status());
  *model = *std::move(inspected);
  model->set_name(name);
  *model->mutable_create_time() = time;
  return ToGrpc(incomplete ? store_->ReplaceModel(*model) : store_->CreateModel(*model));
}

grpc::Status ModelServiceImpl::GetModel(grpc::ServerContext*,
                                        const lemo::v1::GetModelRequest* request,
                                        lemo::v1::Model* model) {
  if (absl::Status valid = CheckName("models", request->name(), "name"); !valid.ok())
    return ToGrpc(valid);
  absl::StatusOr<lemo::v1::Model> found = store_->GetModel(request->name());
  if (!found.ok()) return ToGrpc(found.status());
  *model = *std::move(found);
  return grpc::Status::OK;
}

grpc::Status ModelServiceImpl::ListModels(grpc::ServerContext*, const lemo::v1::ListModelsRequest*,
                                          lemo::v1::ListModelsResponse* response) {
  // A cluster knows few models: one page holds them all.
  auto models = store_->ListModels();
  if (!models.ok()) return ToGrpc(models.status());
  for (lemo::v1::Model& model : *models) *response->add_models() = std::move(model);
  return grpc::Status::OK;
}

grpc::Status ModelServiceImpl::DeleteModel(grpc::ServerContext*,
                                           const lemo::v1::DeleteModelRequest* request,
                                           google::protobuf::Empty*) {
  if (absl::Status valid = CheckName("models", request->name(), "name"); !valid.ok())
    return ToGrpc(valid);
  return ToGrpc(store_->DeleteModel(request->name()));
}

grpc::Status ModelServiceImpl::DownloadModelFile(grpc::ServerContext*,
                                                 const lemo::v1::DownloadModelFileRequest* request,
                                                 grpc::ServerWriter<lemo::v1::DataChunk>* writer) {
  if (absl::Status valid = CheckName("models", request->name(), "name"); !valid.ok())
    return ToGrpc(valid);
  const absl::StatusOr<lemo::v1::Model> model = store_->GetModel(request->name());
  if (!model.ok()) return ToGrpc(model.status());
  const auto file =
      std::find_if(model->files().begin(), model->files().end(),
                   [&request](const auto& one) { return one.path() == request->path(); });
  if (file == model->files().end()) {
    return ToGrpc(absl::NotFoundError(absl::StrCat("path: ", Shortened(request->path(), 200),
                                                   " is no file of ", request->name())));
  }
  if (request->offset() < 0 || request->offset() > file->bytes()) {
    return ToGrpc(absl::OutOfRangeError(
        absl::StrCat("offset: must be 0 to ", file->bytes(), ", got ", request->offset())));
  }
  return SendModelFile(*model, *file, request->offset(), writer);
}

}  // namespace lemo::coordinator
