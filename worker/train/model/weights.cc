#include "worker/train/model/weights.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/files.h"
#include "common/safetensors.h"
#include "common/status_macros.h"
#include "common/violations.h"
#include "worker/train/model/family/family.h"
#include "worker/train/model/random_tensor.h"
#include "worker/train/model/tensor_view.h"
#include "worker/train/model/weight_files.h"

namespace lemo::train {
namespace {

using File = std::shared_ptr<const SafetensorsFile>;

// A tensor where it lies.
struct Source {
  File file;
  const TensorView* view = nullptr;
};

bool Loadable(TensorType type) {
  return type == TensorType::kF32 || type == TensorType::kBF16 || type == TensorType::kF16;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  constexpr size_t kShown = 8;
  const std::vector<int64_t> shown(shape.begin(), shape.begin() + std::min(shape.size(), kShown));
  return absl::StrCat("[", absl::StrJoin(shown, ", "),
                      shown.size() < shape.size() ? ", ...]" : "]");
}

// Old checkpoints store what is computed from the config.
bool IsHarmless(const std::string& name) {
  return absl::EndsWith(name, ".rotary_emb.inv_freq") ||
         absl::EndsWith(name, ".attn.masked_bias") || absl::EndsWith(name, "decoder.version");
}

// Files that were saved without the head lack the `model.` of every name: Meta's OPT on the hub.
std::string FullName(const std::string& name) {
  return absl::StartsWith(name, "decoder.") ? "model." + name : name;
}

// The tensors of all files. A tensor counts where the index says it is.
absl::StatusOr<std::map<std::string, Source>> OpenFiles(const std::filesystem::path& model_dir,
                                                        const WeightFiles& found) {
  std::map<std::string, Source> sources;
  for (const std::string& name : found.files) {
    LEMO_ASSIGN_OR_RETURN(SafetensorsFile opened, SafetensorsFile::Open(model_dir / name));
    const auto file = std::make_shared<const SafetensorsFile>(std::move(opened));
    for (const auto& [tensor, view] : file->tensors()) {
      const auto mapped = found.file_of_tensor.find(tensor);
      if (mapped != found.file_of_tensor.end() && mapped->second != name) continue;
      sources[FullName(tensor)] = {file, &view};
    }
  }
  return sources;
}

absl::Status CheckTensors(const std::filesystem::path& model_dir, const DecoderConfig& config,
                          const WeightFiles& found, const std::vector<TensorSpec>& expected,
                          const std::map<std::string, Source>& sources,
                          const std::vector<std::string>& unexpected) {
  Violations violations;
  for (const TensorSpec& spec : expected) {
    const auto at = sources.find(spec.name);
    if (at == sources.end()) {
      const auto mapped = found.file_of_tensor.find(spec.name);
      violations.Add(
          {.field = spec.name,
           .reason = absl::StrCat(
               "expected ", ShapeText(spec.shape), ", found nothing",
               mapped == found.file_of_tensor.end() ? "" : absl::StrCat(" in ", mapped->second))});
      continue;
    }
    const TensorView& view = *at->second.view;
    if (view.shape != spec.shape || !Loadable(view.type)) {
      violations.Add({.field = spec.name,
                      .reason = absl::StrCat("expected ", ShapeText(spec.shape),
                                             " of F32, BF16 or F16, found ", ShapeText(view.shape),
                                             " of ", std::string(TensorTypeName(view.type))),
                      .file = at->second.file->path().filename().string()});
    }
  }
  if (violations.empty()) return absl::OkStatus();
  std::string message =
      absl::StrCat("the weights in ", model_dir.string(), " are not those of its config.json (",
                   config.architecture, ", ", config.layers, " layers, hidden ", config.hidden,
                   "):\n", violations.ToStatus().message());
  if (!unexpected.empty()) {
    constexpr size_t kShown = 10;
    const std::vector<std::string> shown(unexpected.begin(),
                                         unexpected.begin() + std::min(unexpected.size(), kShown));
    absl::StrAppend(&message,
                    "\nfound but not expected: ", absl::CHexEscape(absl::StrJoin(shown, ", ")),
                    shown.size() < unexpected.size()
                        ? absl::StrCat(" and ", unexpected.size() - shown.size(), " more")
                        : "");
  }
  return absl::InvalidArgumentError(message);
}

Shard ShardOf(const ModelSplit* split, const std::string& tensor) {
  return split != nullptr ? split->ShardOf(tensor) : Shard{};
}

// A rank's part of a tensor as it lies in its file, or in a copy of it.
struct Part {
  at::Tensor tensor;
  bool usable = false;  // in place, as it is: contiguous, in the mapping
};

Part PartOf(const Source& source, const Shard& shard) {
  const TensorView& view = *source.view;
  const at::ScalarType stored = ScalarTypeOf(view.type);
  const auto address = reinterpret_cast<uintptr_t>(view.bytes.data());
  at::Tensor tensor;
  // Files of old writers may put a tensor at an odd address, which no kernel may read in place.
  const bool aligned = address % static_cast<uintptr_t>(ElementBytes(view.type)) == 0;
  if (aligned) {
    tensor = at::from_blob(
        const_cast<char*>(view.bytes.data()), view.shape, [file = source.file](void*) {},
        at::TensorOptions(stored));
  } else {
    tensor = at::empty(view.shape, stored);
    std::memcpy(tensor.mutable_data_ptr(), view.bytes.data(), view.bytes.size());
  }
  const at::Tensor part = NarrowToShard(tensor, shard);
  return {part, aligned && part.is_contiguous()};
}

struct Loaded {
  at::Tensor tensor;
  bool mapped = false;
};

Loaded LoadTensor(const Source& source, const Shard& shard, at::ScalarType type,
                  at::Device device) {
  const Part part = PartOf(source, shard);
  if (part.tensor.scalar_type() == type && device.is_cpu()) {
    if (part.usable) return {part.tensor, true};
    // Columns are read from the mapping here. A copy that was made of a whole tensor at an odd
    // address will do.
    const bool own = !shard.cut() && part.tensor.is_contiguous();
    return {own ? part.tensor : part.tensor.clone(at::MemoryFormat::Contiguous), false};
  }
  return {part.tensor.to(device, type).contiguous(), false};
}

// Where each tensor of a base lies. Both who makes it and who finds it work this out from the key's
// digest, type and part alone: which of the
// model's tensors these are, in the model's order.
struct BaseLayout {
  struct Place {
    TensorSpec spec;
    std::vector<int64_t> shape;  // of the part
    int64_t offset = 0;
  };
  std::vector<Place> places;
  int64_t bytes = 0;
};

int64_t Aligned(int64_t bytes) {
  return (bytes + kBaseAlignment - 1) / kBaseAlignment * kBaseAlignment;
}

// `tensors` have what is used in place already; the base has the rest.
BaseLayout LayoutOf(const std::vector<TensorSpec>& expected,
                    const std::map<std::string, Source>& sources, const ModelSplit* split,
                    at::ScalarType type, at::Device device, ModelWeights::Map* tensors) {
  BaseLayout layout;
  for (const TensorSpec& spec : expected) {
    const Part part = PartOf(sources.at(spec.name), ShardOf(split, spec.name));
    if (part.usable && part.tensor.scalar_type() == type && device.is_cpu()) {
      tensors->emplace(spec.name, part.tensor);
      continue;
    }
    const std::vector<int64_t> shape = part.tensor.sizes().vec();
    layout.places.push_back({spec, shape, layout.bytes});
    layout.bytes += Aligned(part.tensor.numel() * static_cast<int64_t>(c10::elementSize(type)));
  }
  return layout;
}

bool SameBytes(const Source& a, const Source& b) {
  return a.view->type == b.view->type && a.view->bytes == b.view->bytes;
}

}  // namespace

ModelWeights::ModelWeights(Map tensors, at::ScalarType type, at::Device device,
                           int64_t mapped_bytes, std::vector<std::string> warnings)
    : tensors_(std::move(tensors)),
      type_(type),
      device_(device),
      mapped_bytes_(mapped_bytes),
      warnings_(std::move(warnings)) {
  for (const auto& [name, tensor] : tensors_) {
    owned_bytes_ += static_cast<int64_t>(tensor.nbytes());
  }
  owned_bytes_ -= mapped_bytes_;
}

const at::Tensor& ModelWeights::at(std::string_view name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) throw std::out_of_range("no weight named " + std::string(name));
  return found->second;
}

namespace {

// The model's tensors where they lie, checked against its config.
absl::StatusOr<std::map<std::string, Source>> FindTensors(const std::filesystem::path& model_dir,
                                                          const DecoderConfig& config,
                                                          std::vector<std::string>* warnings) {
  LEMO_ASSIGN_OR_RETURN(const WeightFiles found, FindWeightFiles(model_dir));
  LEMO_ASSIGN_OR_RETURN(auto sources, OpenFiles(model_dir, found));
  const std::vector<TensorSpec> expected = ExpectedTensors(config);
  const std::string head_name = absl::StrCat(NamesOf(config).head, ".weight");
  const std::string embedding_name = absl::StrCat(NamesOf(config).embedding, ".weight");

  std::map<std::string, Source> rest = sources;
  for (const TensorSpec& spec : expected) rest.erase(spec.name);
  if (const auto head = rest.find(head_name); head != rest.end() && config.tied_embeddings) {
    const auto embedding = sources.find(embedding_name);
    if (embedding != sources.end() && !SameBytes(head->second, embedding->second)) {
      warnings->push_back(
          absl::StrCat(head_name, " differs from ", embedding_name,
                       ", but config.json ties them (tie_word_embeddings): the head is ignored"));
    }
    rest.erase(head);
  }
  std::vector<std::string> unexpected;
  for (const auto& [name, source] : rest) {
    if (!IsHarmless(name)) unexpected.push_back(name);
  }
  LEMO_RETURN_IF_ERROR(CheckTensors(model_dir, config, found, expected, sources, unexpected));
  for (const std::string& name : unexpected) {
    warnings->push_back(absl::StrCat("tensor ", absl::CHexEscape(name.substr(0, 160)),
                                     " has no place in the model and is ignored"));
  }
  return sources;
}

// All tensors, from the files where they can be used in place and else from a base.
absl::StatusOr<ModelWeights::Map> ShareWeights(const DecoderConfig& config,
                                               const std::map<std::string, Source>& sources,
                                               at::ScalarType type, at::Device device,
                                               const ModelSplit* split,
                                               const BaseSharing& sharing) {
  ModelWeights::Map tensors;
  const BaseLayout layout =
      LayoutOf(ExpectedTensors(config), sources, split, type, device, &tensors);
  if (layout.places.empty()) return tensors;
  const BaseKey key{.digest = sharing.digest,
                    .type = type,
                    .rank = split != nullptr ? split->rank : 0,
                    .ranks = split != nullptr ? split->ranks : 1};
  const auto tensor_at = [type, device](char* data, const BaseLayout::Place& place,
                                        std::function<void(void*)> free) {
    return at::from_blob(data + place.offset, place.shape, std::move(free),
                         at::TensorOptions(type).device(device), device);
  };
  const auto fill = [&](char* data) {
    for (const BaseLayout::Place& place : layout.places) {
      const Part part = PartOf(sources.at(place.spec.name), ShardOf(split, place.spec.name));
      tensor_at(data, place, [](void*) {}).copy_(part.tensor);
    }
    return absl::OkStatus();
  };
  // Parts may be empty, memory may not.
  const int64_t bytes = std::max(layout.bytes, kBaseAlignment);
  LEMO_ASSIGN_OR_RETURN(const BaseMemory base, sharing.bases->Map(key, bytes, fill));
  // from_blob wants a pointer to non-const; nobody may write.
  char* const data = static_cast<char*>(const_cast<void*>(base.get()));
  for (const BaseLayout::Place& place : layout.places) {
    tensors.emplace(place.spec.name, tensor_at(data, place, [base](void*) {}));
  }
  return tensors;
}

}  // namespace

absl::Status CheckWeights(const std::filesystem::path& model_dir, const DecoderConfig& config) {
  std::vector<std::string> warnings;
  return FindTensors(model_dir, config, &warnings).status();
}

absl::StatusOr<ModelWeights> LoadWeights(const std::filesystem::path& model_dir,
                                         const DecoderConfig& config, at::ScalarType type,
                                         at::Device device, const ModelSplit* split,
                                         const BaseSharing* sharing) {
  const at::NoGradGuard no_grad;
  std::vector<std::string> warnings;
  LEMO_ASSIGN_OR_RETURN(const auto sources, FindTensors(model_dir, config, &warnings));
  ModelWeights::Map tensors;
  int64_t mapped_bytes = 0;
  if (sharing != nullptr) {
    LEMO_ASSIGN_OR_RETURN(tensors, ShareWeights(config, sources, type, device, split, *sharing));
    for (const auto& [name, tensor] : tensors) {
      mapped_bytes += static_cast<int64_t>(tensor.nbytes());
    }
    return ModelWeights(std::move(tensors), type, device, mapped_bytes, std::move(warnings));
  }
  for (const TensorSpec& spec : ExpectedTensors(config)) {
    Loaded loaded = LoadTensor(sources.at(spec.name), ShardOf(split, spec.name), type, device);
    if (loaded.mapped) mapped_bytes += static_cast<int64_t>(loaded.tensor.nbytes());
    tensors.emplace(spec.name, std::move(loaded.tensor));
  }
  return ModelWeights(std::move(tensors), type, device, mapped_bytes, std::move(warnings));
}

ModelWeights RandomWeights(const DecoderConfig& config, uint64_t seed, at::ScalarType type,
                           at::Device device, const ModelSplit* split) {
  const at::NoGradGuard no_grad;
  ModelWeights::Map tensors;
  for (const TensorSpec& spec : ExpectedTensors(config)) {
    const Shard shard = ShardOf(split, spec.name);
    at::Tensor tensor;
    if (absl::EndsWith(spec.name, "norm.weight")) {
      tensor = at::ones(spec.shape, at::kFloat);
    } else if (absl::EndsWith(spec.name, ".bias")) {
      tensor = NarrowToShard(at::zeros(spec.shape, at::kFloat), shard).contiguous();
    } else {
      tensor = NormalTensor(spec.shape, config.initializer_range, seed, spec.name, shard, type);
    }
    tensors.emplace(spec.name, tensor.to(device, type));
  }
  return ModelWeights(std::move(tensors), type, device, /*mapped_bytes=*/0, {});
}

absl::StatusOr<std::string> WeightsFingerprint(const std::filesystem::path& model_dir) {
  LEMO_ASSIGN_OR_RETURN(const std::string config, ReadFile(model_dir / "config.json"));
  LEMO_ASSIGN_OR_RETURN(const WeightFiles found, FindWeightFiles(model_dir));
  // A digest of digests: every part has one length, so parts cannot run into one another.
  std::string parts = absl::StrCat(Sha256Hex(config), Sha256Hex(found.index));
  for (const std::string& name : found.files) {
    const std::filesystem::path path = model_dir / name;
    LEMO_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
    std::map<std::string, TensorView> tensors;
    std::map<std::string, std::string> metadata;
    if (const absl::Status status = ParseSafetensors(file.bytes(), &tensors, &metadata);
        !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(path.string(), ": ", status.message()));
    }
    size_t data_bytes = 0;
    for (const auto& [tensor, view] : tensors) data_bytes += view.bytes.size();
    const std::string_view header = file.bytes().substr(0, file.bytes().size() - data_bytes);
    absl::StrAppend(&parts, Sha256Hex(name), Sha256Hex(header),
                    Sha256Hex(absl::StrCat(file.bytes().size())));
  }
  return Sha256Hex(parts);
}

}  // namespace lemo::train
