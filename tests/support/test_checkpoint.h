// Small checkpoints whose content is a function of their step, and scratch directories.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/train/state/checkpoint.h"

namespace lemo::train {

// A directory of one test, removed at its end.
class ScratchDir {
 public:
  ScratchDir() {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    std::string name = absl::StrCat(test->test_suite_name(), ".", test->name(), ".", ::getpid());
    for (char& c : name) c = c == '/' ? '-' : c;
    path_ = std::filesystem::path(testing::TempDir()) / name;
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~ScratchDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchDir(const ScratchDir&) = delete;
  ScratchDir& operator=(const ScratchDir&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline std::string ReadText(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

inline void WriteText(const std::filesystem::path& path, std::string_view text) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

// Names in `dir`, sorted.
inline std::vector<std::string> Names(const std::filesystem::path& dir) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(dir)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// Owns what CheckpointContents points to. `variant` tells checkpoints of one step apart.
class TestCheckpoint {
 public:
  explicit TestCheckpoint(int64_t step, int variant = 0) {
    contents_.step = step;
    contents_.state_json = absl::StrCat("{\"step\":", step, ",\"variant\":", variant, "}");
    Add("trainables", "weight", 96, step * 1000 + variant);
    Add("optimizer", "moment1", 96, step * 2000 + variant);
    Add("optimizer", "moment2", 33, step * 3000 + variant);
  }

  CheckpointContents& contents() { return contents_; }
  const CheckpointContents& contents() const { return contents_; }

  // Whether `loaded` holds exactly this.
  testing::AssertionResult Equals(const LoadedCheckpoint& loaded) const {
    if (loaded.step != contents_.step) {
      return testing::AssertionFailure() << "step " << loaded.step << ", not " << contents_.step;
    }
    if (loaded.state_json != contents_.state_json) {
      return testing::AssertionFailure() << "state " << loaded.state_json;
    }
    if (loaded.files.size() != contents_.tensors.size()) {
      return testing::AssertionFailure() << loaded.files.size() << " files";
    }
    for (const auto& [stem, tensors] : contents_.tensors) {
      const auto file = loaded.files.find(stem);
      if (file == loaded.files.end() || file->second.tensors().size() != tensors.size()) {
        return testing::AssertionFailure() << "file " << stem;
      }
      for (const auto& [name, tensor] : tensors) {
        const auto found = file->second.tensors().find(name);
        if (found == file->second.tensors().end() || found->second.bytes != tensor.bytes ||
            found->second.shape != tensor.shape) {
          return testing::AssertionFailure() << "tensor " << stem << "." << name;
        }
      }
    }
    return testing::AssertionSuccess();
  }

 private:
  void Add(const std::string& stem, const std::string& name, int64_t elements, int64_t first) {
    std::vector<float>& values = buffers_[absl::StrCat(stem, ".", name)];
    for (int64_t i = 0; i < elements; ++i) values.push_back(static_cast<float>(first + i));
    contents_.tensors[stem][name] = {
        .type = TensorType::kF32,
        .shape = {elements},
        .bytes = {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)}};
  }

  std::map<std::string, std::vector<float>> buffers_;
  CheckpointContents contents_;
};

}  // namespace lemo::train
