// LoRA adapters in PEFT's format: adapter_config.json and adapter_model.safetensors.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/safetensors.h"
#include "worker/train/publish/export_extras.h"

namespace lemo::train {

// PEFT's key of one LoRA matrix: LoraKey("model.layers.0.self_attn.q_proj", "A") is
// "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight".
std::string LoraKey(std::string_view module_path, std::string_view matrix);

struct LoraExport {
  std::string base_model_name_or_path;
  int64_t rank = 8;
  double alpha = 16;
  double dropout = 0;
  bool rslora = false;  // scale alpha / sqrt(rank) instead of alpha / rank
  // Names or dotted suffixes. `all-linear` stands for the last names of all modules that have
  // tensors. Must not match modules of the model that have none: PEFT would add them.
  std::vector<std::string> target_modules;
  // PEFT's patterns (peft_pattern.h).
  std::map<std::string, int64_t> rank_pattern;
  std::map<std::string, double> alpha_pattern;
  // By PEFT's key: A [rank, in], B [out, rank]. Views must live until the call returns.
  std::map<std::string, TensorView> tensors;
};

// Publishes the adapter as the directory `dir`: config, tensors, tokenizer and template, model
// card, lemo_run.json. What was written is read again and compared before it is moved into place;
// an adapter that is there is replaced by that move only. InvalidArgument, all faults listed, when
// tensors and config do not belong together (nothing to write, a partner missing, a rank that the
// config does not give, a module that no target matches); FailedPrecondition: disk full;
// PermissionDenied.
absl::Status WritePeftAdapter(const std::filesystem::path& dir, const LoraExport& adapter,
                              const ExportExtras& extras);

// One module of an adapter that was read, ranks and alphas resolved by PEFT's rules.
struct ImportedModule {
  int64_t rank = 0;
  double alpha = 0;
  double scale = 0;  // what B A is multiplied by
};

// An adapter read back; views live as long as the object.
struct LoraImport {
  std::string base_model_name_or_path;  // empty when the config names none
  int64_t rank = 0;
  double alpha = 0;
  double dropout = 0;
  bool rslora = false;
  // As in the config; a regular expression is one entry.
  std::vector<std::string> target_modules;
  std::map<std::string, ImportedModule> modules;  // by module path
  std::map<std::string, TensorView> tensors;      // by PEFT's key
  SafetensorsFile file;
};

// NotFound when a file is missing. InvalidArgument with every fault: another PEFT type, options
// that change what the tensors mean (DoRA, biases, modules_to_save, starts that change the base
// weights, ...), keys that are not LoRA's, matrices without partner, shapes and ranks that do not
// agree.
absl::StatusOr<LoraImport> ReadPeftAdapter(const std::filesystem::path& dir);

}  // namespace lemo::train
