#include "common/job_files.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "common/files.h"

namespace lemo {
namespace {

namespace fs = std::filesystem;

TEST(JobFiles, ANameSaysWhoseArtifactItIs) {
  const std::optional<JobFile> file = JobFileNamed("jobs/a/predictor/card.json");
  ASSERT_TRUE(file.has_value());
  EXPECT_EQ(file->job, "jobs/a");
  EXPECT_EQ(file->path, "predictor/card.json");
  EXPECT_EQ(NameOf(*file), "jobs/a/predictor/card.json");
  for (const char* other : {"files/a", "jobs/a", "jobs/a/", "auto", "/jobs/a/b", ""}) {
    EXPECT_FALSE(JobFileNamed(other).has_value()) << other;
  }
}

TEST(JobFiles, APredictorIsADirectoryOfLinks) {
  const fs::path directory = fs::path(testing::TempDir()) / "job-files-test";
  fs::remove_all(directory);
  ASSERT_TRUE(MakeDirectories(directory).ok());
  ASSERT_TRUE(WriteFileAtomic(directory / "content", "{}").ok());
  const std::string content = (directory / "content").string();
  const fs::path made = directory / "predictor";
  ASSERT_TRUE(LinkPredictor("jobs/a",
                            {{"jobs/a/predictor/card.json", content},
                             {"jobs/a/report.html", "/nowhere"},
                             {"jobs/ab/predictor/other.json", "/nowhere"},
                             {"files/a", "/nowhere"}},
                            made)
                  .ok());
  EXPECT_EQ(ReadFile(made / "card.json", 100).value_or(""), "{}");
  EXPECT_EQ(std::distance(fs::directory_iterator(made), fs::directory_iterator()), 1);
  // Once more for an attempt that follows.
  EXPECT_TRUE(LinkPredictor("jobs/a", {{"jobs/a/predictor/b", content}}, made).ok());
  EXPECT_FALSE(fs::exists(made / "card.json"));
  EXPECT_TRUE(absl::IsNotFound(LinkPredictor("jobs/b", {{"files/a", content}}, made)));
  for (const char* name : {"jobs/a/predictor/../../x", "jobs/a/predictor/..",
                           "jobs/a/predictor/a/b", "jobs/a/predictor/"}) {
    EXPECT_FALSE(LinkPredictor("jobs/a", {{name, content}}, made).ok()) << name;
  }
  fs::remove_all(directory);
}

}  // namespace
}  // namespace lemo
