// A small base model directory and adapter tensors for the tests of publishing.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "common/safetensors.h"
#include "tests/support/test_checkpoint.h"
#include "worker/train/publish/export_extras.h"

namespace lemo::train {

// Tensors with buffers of their own.
class SampleTensors {
 public:
  void Add(const std::string& name, std::vector<int64_t> shape) {
    std::vector<float>& values = buffers_[name];
    int64_t elements = 1;
    for (const int64_t size : shape) elements *= size;
    for (int64_t i = 0; i < elements; ++i) values.push_back(0.25F * static_cast<float>(++count_));
    views[name] = {
        .type = TensorType::kF32,
        .shape = std::move(shape),
        .bytes = {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)}};
  }

  std::map<std::string, TensorView> views;

 private:
  std::map<std::string, std::vector<float>> buffers_;
  int64_t count_ = 0;
};

inline std::filesystem::path WriteBaseModel(const std::filesystem::path& dir) {
  WriteText(dir / "config.json",
            "{\"model_type\": \"llama\", \"torch_dtype\": \"bfloat16\", \"hidden_size\": 4}\n");
  WriteText(dir / "tokenizer.json", "{\"version\": \"1.0\"}");
  WriteText(dir / "tokenizer_config.json",
            "{\"tokenizer_class\": \"T\", \"chat_template\": \"inline\", \"eos_token\": \"</s>\"}");
  WriteText(dir / "special_tokens_map.json", "{\"eos_token\": \"</s>\"}");
  WriteText(dir / "generation_config.json", "{\"eos_token_id\": 2, \"do_sample\": false}");
  WriteText(dir / "secret.txt", "not of the tokenizer");
  return dir;
}

inline ExportExtras SampleExtras(const std::filesystem::path& model_dir) {
  return {.model_dir = model_dir,
          .chat_template_hash = "abc",
          .run_spec_json = "{\"train\": {\"steps\": 40}}",
          .lemo_version = "0.1.0",
          .summary = {{"Steps", "40"}, {"Rows | kept", "7\n8"}}};
}

}  // namespace lemo::train
