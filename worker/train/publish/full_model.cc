#include "worker/train/publish/full_model.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "worker/train/publish/json_file.h"
#include "worker/train/state/atomic_directory.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";

using Tensors = std::map<std::string, TensorView>;

// The tensors to write: without the head where it is the embedding.
absl::StatusOr<Tensors> Untied(const FullModelExport& model) {
  if (model.tensors.empty()) return absl::InvalidArgumentError("there are no tensors to publish");
  Tensors tensors = model.tensors;
  const auto head = tensors.find(kHead), embedding = tensors.find(kEmbedding);
  if (!model.tied_embeddings || head == tensors.end()) return tensors;
  if (embedding == tensors.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the model ties ", kHead, " to ", kEmbedding, ", which is not there"));
  }
  if (head->second.type != embedding->second.type ||
      head->second.shape != embedding->second.shape ||
      head->second.bytes != embedding->second.bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the model ties ", kHead, " to ", kEmbedding, ", but the two differ"));
  }
  tensors.erase(head);
  return tensors;
}

std::vector<Tensors> Shards(Tensors tensors, int64_t bytes_max) {
  std::vector<Tensors> shards(1);
  int64_t bytes = 0;
  for (auto& [name, tensor] : tensors) {
    const auto size = static_cast<int64_t>(tensor.bytes.size());
    if (!shards.back().empty() && bytes + size > bytes_max) {
      shards.emplace_back();
      bytes = 0;
    }
    bytes += size;
    shards.back().emplace(name, std::move(tensor));
  }
  return shards;
}

absl::Status WriteChecked(const fs::path& path, const Tensors& tensors) {
  LEMO_RETURN_IF_ERROR(WriteSafetensors(path, tensors, {{"format", "pt"}}));
  LEMO_ASSIGN_OR_RETURN(const SafetensorsFile written, SafetensorsFile::Open(path));
  for (const auto& [name, tensor] : tensors) {
    const auto found = written.tensors().find(name);
    if (found == written.tensors().end() || found->second.type != tensor.type ||
        found->second.shape != tensor.shape || found->second.bytes != tensor.bytes) {
      return absl::DataLossError(
          absl::StrCat(path.string(), ": ", name, " reads back differently"));
    }
  }
  return absl::OkStatus();
}

absl::Status WriteTensors(const fs::path& dir, const std::vector<Tensors>& shards) {
  if (shards.size() == 1) return WriteChecked(dir / "model.safetensors", shards.front());
  OrderedJson weight_map = OrderedJson::object();
  int64_t total = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name =
        absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, shards.size());
    LEMO_RETURN_IF_ERROR(WriteChecked(dir / name, shards[i]));
    for (const auto& [tensor_name, tensor] : shards[i]) {
      weight_map[tensor_name] = name;
      total += static_cast<int64_t>(tensor.bytes.size());
    }
  }
  const OrderedJson index = {{"metadata", {{"total_size", total}}},
                             {"weight_map", std::move(weight_map)}};
  return WriteJson(dir / "model.safetensors.index.json", index);
}

// Old and new readers look for different spellings; the ones that are there are kept.
absl::Status WriteConfig(const fs::path& from, const fs::path& to, const std::string& dtype) {
  LEMO_ASSIGN_OR_RETURN(const std::string text, ReadFile(from));
  LEMO_ASSIGN_OR_RETURN(OrderedJson config, ParseJsonObject(text, from));
  bool named = false, changed = false;
  for (const char* spelling : {"torch_dtype", "dtype"}) {
    const auto found = config.find(spelling);
    if (found == config.end()) continue;
    named = true;
    if (*found == dtype) continue;
    *found = dtype;
    changed = true;
  }
  if (!named) config["torch_dtype"] = dtype;  // every version reads this one
  return changed || !named ? WriteJson(to, config) : WriteFileAtomic(to, text);
}

absl::Status WriteInto(const fs::path& dir, const fs::path& base_dir, const FullModelExport& model,
                       const std::vector<Tensors>& shards, const ExportExtras& extras) {
  LEMO_RETURN_IF_ERROR(WriteConfig(base_dir / "config.json", dir / "config.json", model.dtype));
  LEMO_RETURN_IF_ERROR(WriteTensors(dir, shards));
  LEMO_RETURN_IF_ERROR(WriteTextFiles(extras, dir));
  LEMO_RETURN_IF_ERROR(WriteRunFile(extras, dir));
  return WriteModelCard({.title = model.title,
                         .base_model = model.base_model_name_or_path,
                         .library = "transformers",
                         .tags = {"lemo"},
                         .usage = "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
                                  "path = \"path/to/this/directory\"\n"
                                  "tokenizer = AutoTokenizer.from_pretrained(path)\n"
                                  "model = AutoModelForCausalLM.from_pretrained(path)\n"},
                        extras, dir);
}

}  // namespace

absl::Status WriteModelDirectory(const fs::path& dir, const fs::path& base_dir,
                                 const FullModelExport& model, const ExportExtras& extras) {
  LEMO_ASSIGN_OR_RETURN(Tensors tensors, Untied(model));
  const std::vector<Tensors> shards = Shards(std::move(tensors), model.shard_bytes_max);
  LEMO_ASSIGN_OR_RETURN(AtomicDirectory directory, AtomicDirectory::Begin(dir));
  LEMO_RETURN_IF_ERROR(WriteInto(directory.path(), base_dir, model, shards, extras));
  return directory.Commit();
}

}  // namespace lemo::train
