// Where the tests of text/ find models, tokenizers and expected results.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

namespace lemo::text {

inline std::filesystem::path Fixtures() {
  return std::filesystem::path(LEMO_SOURCE_DIR) / "tests/fixtures";
}

// Tokenizers whose licence or size keeps them out of the repository: LEMO_SHARED_DATA, or a folder
// beside it.
inline std::filesystem::path SharedData() {
  if (const char* given = std::getenv("LEMO_SHARED_DATA")) return given;
  return std::filesystem::path(LEMO_SOURCE_DIR) / "../shared/data";
}

// Of `names` those that are folders in SharedData()/tokenizers; says which are not.
inline std::vector<std::string> PresentTokenizers(const std::vector<std::string>& names) {
  std::vector<std::string> present;
  for (const std::string& name : names) {
    const std::filesystem::path folder = SharedData() / "tokenizers" / name;
    if (std::filesystem::exists(folder)) {
      present.push_back(name);
    } else {
      std::cerr << "not tested, since absent: " << folder.string() << " (set LEMO_SHARED_DATA)\n";
    }
  }
  return present;
}

inline std::string ReadText(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

inline nlohmann::ordered_json ReadJson(const std::filesystem::path& path) {
  return nlohmann::ordered_json::parse(ReadText(path));
}

// An empty folder for one test.
inline std::filesystem::path Scratch(const std::string& test_temp_dir, const std::string& name) {
  const std::filesystem::path folder = std::filesystem::path(test_temp_dir) / ("lemo_text_" + name);
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  return folder;
}

inline void WriteText(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

}  // namespace lemo::text
