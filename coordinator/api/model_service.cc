#include "coordinator/api/model_service.h"

#include <algorithm>
#include <filesystem>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/safetensors.h"
#include "common/status_macros.h"
#include "coordinator/api/errors.h"
#include "coordinator/api/names.h"
#include "google/protobuf/util/time_util.h"
#include "nlohmann/json.hpp"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kConfigLimit = int64_t{16} << 20;

absl::Status NotAModel(const fs::path& path, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat("path: ", path.string(), ": ", why));
}

}  // namespace

absl::StatusOr<lemo::v1::Model> InspectModel(const std::string& path) {
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

  std::vector<fs::path> weights, contents = {directory / "config.json"};
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory, error)) {
    if (entry.path().extension() == ".safetensors") weights.push_back(entry.path());
  }
  if (error) return NotAModel(directory, error.message());
  if (weights.empty()) return NotAModel(directory, "has no safetensors files");
  std::sort(weights.begin(), weights.end());
  if (fs::exists(directory / "tokenizer.json")) contents.push_back(directory / "tokenizer.json");
  contents.insert(contents.end(), weights.begin(), weights.end());

  for (const fs::path& file : weights) {
    LEMO_ASSIGN_OR_RETURN(const SafetensorsFile tensors, SafetensorsFile::Open(file));
    for (const auto& [name, tensor] : tensors.tensors()) {
      model.set_parameters(model.parameters() +
                           static_cast<int64_t>(tensor.bytes.size()) / ElementBytes(tensor.type));
    }
  }
  std::string listing;
  for (const fs::path& file : contents) {
    LEMO_ASSIGN_OR_RETURN(const std::string hash, Sha256HexOfFile(file));
    const int64_t bytes = static_cast<int64_t>(fs::file_size(file, error));
    model.set_bytes(model.bytes() + bytes);
    absl::StrAppend(&listing, file.filename().string(), " ", bytes, " ", hash, "\n");
  }
  model.set_fingerprint(Sha256Hex(listing));
  return model;
}

grpc::Status ModelServiceImpl::AddModel(grpc::ServerContext*,
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
  if (const auto known = store_->GetModel(name); known.ok()) {
    return ToGrpc(absl::AlreadyExistsError(absl::StrCat(name, " is ", known->path())));
  }
  absl::StatusOr<lemo::v1::Model> inspected = InspectModel(request->path());
  if (!inspected.ok()) return ToGrpc(inspected.status());
  *model = *std::move(inspected);
  model->set_name(name);
  *model->mutable_create_time() = google::protobuf::util::TimeUtil::GetCurrentTime();
  return ToGrpc(store_->CreateModel(*model));
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

}  // namespace lemo::coordinator
