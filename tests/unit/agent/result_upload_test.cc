#include "worker/agent/result_upload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/agent/scratch.h"

namespace lemo::agent {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(ResultFiles, AreWhatWasPublishedWithoutLinks) {
  const Scratch scratch;
  EXPECT_THAT(ResultFiles(scratch.path()), IsEmpty());
  for (const char* name :
       {"adapter/a", "adapter/sub/b", "model/c", "predictor/d", "report.json", "report.html",
        "trainer_state.json", "checkpoints/step-1/x", "cache/y", "other"}) {
    scratch.Write(name, "x");
  }
  std::filesystem::create_symlink("/etc/passwd", scratch.path() / "adapter" / "link");
  std::filesystem::create_directory_symlink("/etc", scratch.path() / "model" / "etc");
  EXPECT_THAT(ResultFiles(scratch.path()),
              ElementsAre("adapter/a", "adapter/sub/b", "model/c", "predictor/d", "report.html",
                          "report.json", "trainer_state.json"));
}

}  // namespace
}  // namespace lemo::agent
