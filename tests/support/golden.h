// Comparison with a file in the tree. When an output changes on purpose: look at the difference,
// then run the test with LEMO_UPDATE_GOLDEN=1.
#pragma once

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

#include "gtest/gtest.h"

namespace lemo::testing {

inline std::string ReadText(const std::string& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file.is_open()) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// `path` is relative to the root of the tree.
inline void ExpectGolden(const std::string& path, const std::string& actual) {
  const std::string full = std::string(LEMO_SOURCE_DIR) + "/" + path;
  if (std::getenv("LEMO_UPDATE_GOLDEN")) std::ofstream(full) << actual;
  EXPECT_EQ(ReadText(full), actual)
      << "differs from " << path << "; if that is meant, run with LEMO_UPDATE_GOLDEN=1";
}

}  // namespace lemo::testing
