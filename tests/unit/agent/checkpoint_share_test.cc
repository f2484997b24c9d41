#include "worker/agent/checkpoint_share.h"

#include "gtest/gtest.h"
#include "tests/unit/agent/scratch.h"

namespace lemo::agent {
namespace {

namespace fs = std::filesystem;

lemo::v1::JobCheckpoint Checkpoint(const std::vector<std::string>& paths) {
  lemo::v1::JobCheckpoint checkpoint;
  checkpoint.set_step(10);
  for (const std::string& path : paths) {
    lemo::v1::Artifact& file = *checkpoint.add_files();
    file.set_path(path);
    file.set_bytes(1);
    file.set_sha256(std::string(64, 'a'));
  }
  return checkpoint;
}

class FetchCheckpointTest : public testing::Test {
 protected:
  absl::Status Fetch(const lemo::v1::JobCheckpoint& checkpoint) {
    Canceller canceller;
    canceller.Cancel();  // no file comes
    return FetchCheckpoint("jobs/1", checkpoint, out_, jobs_.get(), &canceller);
  }

  const Scratch scratch_;
  const fs::path out_ = scratch_.path() / "out";
  const std::unique_ptr<lemo::v1::JobService::Stub> jobs_ =
      lemo::v1::JobService::NewStub(Dial("127.0.0.1:1"));
};

// A trainer takes a directory with checkpoints and without an identity for another run's.
TEST_F(FetchCheckpointTest, WhatDidNotComeWholeLeavesNothing) {
  const auto checkpoint = Checkpoint({"checkpoints/step-00000010/manifest.json",
                                      "checkpoints/step-00000010/state.json", "run_identity.json"});
  EXPECT_EQ(Fetch(checkpoint).code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(fs::is_empty(scratch_.path()));
}

TEST_F(FetchCheckpointTest, OneAsNewIsNotFetched) {
  fs::create_directories(out_ / "checkpoints" / "step-00000010");
  EXPECT_TRUE(Fetch(Checkpoint({"checkpoints/step-00000010/manifest.json"})).ok());
}

TEST_F(FetchCheckpointTest, NoPathLeavesTheDirectory) {
  for (const char* path : {"../x", "/etc/passwd", "checkpoints/../../x", "checkpoints/a/b/c",
                           "checkpoints/.hidden/x", "other.json", ""}) {
    EXPECT_EQ(Fetch(Checkpoint({path})).code(), absl::StatusCode::kInvalidArgument) << path;
  }
}

}  // namespace
}  // namespace lemo::agent
