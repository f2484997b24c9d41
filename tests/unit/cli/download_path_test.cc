#include <filesystem>

#include "cli/download.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lemo::cli {
namespace {

namespace fs = std::filesystem;

TEST(PathBelow, TakesPathsThatStayBelow) {
  EXPECT_EQ(*PathBelow("out", "adapter/adapter_model.safetensors"),
            fs::path("out/adapter/adapter_model.safetensors"));
  EXPECT_EQ(*PathBelow("/a/../b", "report.html"), fs::path("/a/../b/report.html"));
  EXPECT_EQ(*PathBelow("out", "a..b/...c"), fs::path("out/a..b/...c"));
}

TEST(PathBelow, RefusesPathsThatLeadElsewhere) {
  for (const char* path : {"", "/etc/passwd", "../a", "a/../../b", "a/..", "./a", "a//b", "a/",
                           "a\\..\\b", "a\nb", "\x1b[2J"}) {
    EXPECT_EQ(PathBelow("out", path).status().code(), absl::StatusCode::kInvalidArgument) << path;
  }
  EXPECT_FALSE(PathBelow("out", std::string("a\0b", 3)).ok());
}

TEST(PathBelow, RefusesToGoThroughALink) {
  const fs::path directory = fs::path(testing::TempDir()) / "path_below_link";
  fs::remove_all(directory);
  fs::create_directories(directory / "real");
  fs::create_directory_symlink("/tmp", directory / "link");
  EXPECT_TRUE(PathBelow(directory, "real/a").ok());
  EXPECT_FALSE(PathBelow(directory, "link/a").ok());
  EXPECT_FALSE(PathBelow(directory, "link").ok());
}

}  // namespace
}  // namespace lemo::cli
