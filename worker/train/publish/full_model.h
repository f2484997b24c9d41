// Whole models as Hugging Face directories: what full fine-tuning and a merged adapter give.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "common/safetensors.h"
#include "worker/train/publish/export_extras.h"

namespace lemo::train {

struct FullModelExport {
  std::string base_model_name_or_path;  // for the model card
  // By Hugging Face's name. Views must live until the call returns.
  std::map<std::string, TensorView> tensors;
  // Type of the weights in Hugging Face's words (`float32`, `bfloat16`): written to config.json.
  std::string dtype;
  // The output head is the embedding: `lm_head.weight` is written once, as
  // `model.embed_tokens.weight`.
  bool tied_embeddings = false;
  // "Fine-tuned model", "Merged adapter".
  std::string title = "Fine-tuned model";
  // Larger models are split into shards of at most this size (or one tensor, if that is larger).
  int64_t shard_bytes_max = 5'000'000'000;
};

// Publishes `dir`: config.json of `base_dir` with its dtype brought up to date, safetensors,
// tokenizer and template, generation settings, model card, lemo_run.json. Made beside, opened
// again, then moved into place as WritePeftAdapter does. NotFound without base_dir/config.json;
// InvalidArgument for nothing to write, or tied tensors that differ; FailedPrecondition: disk full.
absl::Status WriteModelDirectory(const std::filesystem::path& dir,
                                 const std::filesystem::path& base_dir,
                                 const FullModelExport& model, const ExportExtras& extras);

}  // namespace lemo::train
