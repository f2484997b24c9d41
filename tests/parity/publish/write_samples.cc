// write_samples MODEL OUT: adapters of several kinds, with random matrices, and a sharded copy of
// the model, as the publishing code writes them.
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/safetensors.h"
#include "worker/train/publish/full_model.h"
#include "worker/train/publish/peft_adapter.h"

namespace lemo::train {
namespace {

constexpr unsigned kSeed = 7;

struct Matrices {
  std::mt19937 random{kSeed};
  std::map<std::string, std::vector<float>> buffers;

  TensorView Make(const std::string& key, int64_t rows, int64_t columns) {
    std::vector<float>& values = buffers[key];
    std::normal_distribution<float> normal(0, 0.1F);
    for (int64_t i = 0; i < rows * columns; ++i) values.push_back(normal(random));
    return {.type = TensorType::kF32,
            .shape = {rows, columns},
            .bytes = {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)}};
  }
};

absl::Status WriteAdapter(const SafetensorsFile& base, const std::filesystem::path& dir,
                          LoraExport adapter, const ExportExtras& extras) {
  Matrices matrices;
  for (const auto& [name, tensor] : base.tensors()) {
    if (!absl::EndsWith(name, "_proj.weight")) continue;
    const std::string module = name.substr(0, name.rfind('.'));
    const std::string last = module.substr(module.rfind('.') + 1);
    bool trained = false;
    for (const std::string& target : adapter.target_modules) {
      trained = trained || target == last || target == "all-linear";
    }
    if (!trained) continue;
    int64_t rank = adapter.rank;
    for (const auto& [key, value] : adapter.rank_pattern) {
      if (absl::EndsWith(module, key)) rank = value;
    }
    const std::string a = LoraKey(module, "A"), b = LoraKey(module, "B");
    adapter.tensors[a] = matrices.Make(a, rank, tensor.shape[1]);
    adapter.tensors[b] = matrices.Make(b, tensor.shape[0], rank);
  }
  return WritePeftAdapter(dir, adapter, extras);
}

absl::Status WriteAll(const std::filesystem::path& model, const std::filesystem::path& out) {
  const absl::StatusOr<SafetensorsFile> base = SafetensorsFile::Open(model / "model.safetensors");
  if (!base.ok()) return base.status();
  const ExportExtras extras = {
      .model_dir = model,
      .chat_template =
          "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}"
          "{{ eos_token }}{% endfor %}",
      .chat_template_hash = "of the template",
      .end_token_id = 2,
      .run_spec_json = "{\"train\": {\"steps\": 40}}",
      .lemo_version = "0.1.0",
      .summary = {{"Steps", "40"}, {"Evaluation loss", "1.23"}}};
  const std::map<std::string, LoraExport> adapters = {
      {"plain", {.rank = 4, .alpha = 8, .target_modules = {"q_proj", "v_proj"}}},
      {"rslora", {.rank = 4, .alpha = 6.5, .rslora = true, .target_modules = {"all-linear"}}},
      {"patterns",
       {.rank = 4,
        .alpha = 8,
        .dropout = 0.05,
        .target_modules = {"q_proj", "down_proj"},
        .rank_pattern = {{"layers.0.self_attn.q_proj", 6}},
        .alpha_pattern = {{"layers.1.mlp.down_proj", 3.5}}}}};
  for (auto [name, adapter] : adapters) {
    adapter.base_model_name_or_path = model.string();
    if (absl::Status status = WriteAdapter(*base, out / name, adapter, extras); !status.ok()) {
      return status;
    }
  }
  return WriteModelDirectory(out / "full", model,
                             {.base_model_name_or_path = model.string(),
                              .tensors = base->tensors(),
                              .dtype = "float32",
                              .tied_embeddings = true,
                              .shard_bytes_max = 300'000},
                             extras);
}

}  // namespace
}  // namespace lemo::train

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: write_samples MODEL OUT\n");
    return 2;
  }
  const absl::Status status = lemo::train::WriteAll(argv[1], argv[2]);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
