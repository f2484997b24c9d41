// A folder for one test, files in it, and the model text of tests/fixtures/data/tiny_model.
#pragma once

#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "worker/train/data/dataset.h"

namespace lemo::train {

// Token ids of the tiny model: bytes are themselves.
inline constexpr int32_t kBos = 265, kEos = 266, kImStart = 267, kImEnd = 268,
                         kTinyVocabulary = 269;

class Scratch {
 public:
  Scratch() {
    static std::atomic<int> serial = 0;
    folder_ = std::filesystem::path(testing::TempDir()) /
              ("lemo_data_" + std::to_string(::getpid()) + "_" + std::to_string(serial++));
    std::filesystem::create_directories(folder_);
  }
  ~Scratch() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  std::filesystem::path operator/(const std::string& name) const { return folder_ / name; }

  std::string Write(const std::string& name, const std::string& content) const {
    std::ofstream out(folder_ / name, std::ios::binary);
    out << content;
    return (folder_ / name).string();
  }

 private:
  std::filesystem::path folder_;
};

inline std::string Slurp(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline text::ModelText TinyModel() {
  absl::StatusOr<text::ModelText> text = text::ModelText::Load(
      std::filesystem::path(LEMO_SOURCE_DIR) / "tests/fixtures/data/tiny_model");
  EXPECT_TRUE(text.ok()) << text.status();
  return *std::move(text);
}

inline lemo::v1::DataFile DataFileOf(const std::string& path, const std::string& format = "auto") {
  lemo::v1::DataFile file;
  file.set_path(path);
  file.set_format(format);
  return file;
}

// What Dataset::Open said. `dataset` is good when `violations` is empty and the status is OK.
struct Opened {
  absl::StatusOr<Dataset> dataset = absl::UnknownError("not opened");
  DataCounts counts;
  Violations violations;
};

inline Opened OpenData(const std::vector<std::string>& paths, const DatasetOptions& options,
                       const text::ModelText& text = TinyModel()) {
  Opened opened;
  std::vector<lemo::v1::DataFile> files;
  for (const std::string& path : paths) files.push_back(DataFileOf(path));
  opened.dataset = Dataset::Open(files, text, options, &opened.counts, &opened.violations);
  return opened;
}

// The kept violations, one a line.
inline std::string Text(const Violations& violations) {
  std::string out;
  for (const Violation& violation : violations.kept()) out += violation.ToString() + "\n";
  return out;
}

}  // namespace lemo::train
