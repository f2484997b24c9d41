// Files to the worker and results from it, over a bad network.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/files.h"
#include "tests/integration/agent/harness.h"

namespace lemo::agent {
namespace {

using lemo::v1::AttemptEnded;
using testing::HasSubstr;

class Transfer : public AgentTest {
 protected:
  std::filesystem::path CachedFile(const std::string& sha256) const {
    return directory_ / "agent" / "files" / sha256;
  }
};

TEST_F(Transfer, RefusesAFileThatIsNotWhatWasPromised) {
  StartAgent();
  lemo::v1::Assignment assignment = MakeAssignment("a", "error 2 fault\n");
  coordinator_.ReplaceFile("files/a", "error 3 fault\n");
  coordinator_.Assign(assignment);
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  const KnownAttempt attempt = coordinator_.Get({"jobs/a", 1});
  EXPECT_EQ(attempt.ended->outcome(), AttemptEnded::FAILED);
  EXPECT_EQ(attempt.ended->failure().kind(), lemo::v1::Failure::SYSTEM_ERROR);
  EXPECT_THAT(attempt.ended->failure().message(), HasSubstr("SHA-256"));
  EXPECT_EQ(attempt.started, 0);
  EXPECT_TRUE(std::filesystem::is_empty(directory_ / "agent" / "files"));
}

TEST_F(Transfer, RefusesAFileThatIsLongerThanPromised) {
  StartAgent();
  lemo::v1::Assignment assignment = MakeAssignment("a", "error 2 fault\n");
  coordinator_.ReplaceFile("files/a", "error 2 fault\nerror 3 fault\n");
  coordinator_.Assign(assignment);
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  EXPECT_THAT(coordinator_.Get({"jobs/a", 1}).ended->failure().message(),
              HasSubstr("cannot fetch files/a"));
  EXPECT_TRUE(std::filesystem::is_empty(directory_ / "agent" / "files"));
}

TEST_F(Transfer, GoesOnWithADownloadThatBrokeOff) {
  StartAgent();
  coordinator_.Set([](auto* manners) { manners->cut_downloads = 2; });
  const std::string script = std::string(50'000, '\n') + "error 2 fault\n";
  Assign("a", script);
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  EXPECT_EQ(coordinator_.Get({"jobs/a", 1}).ended->failure().message(), "fault in files/a");
  EXPECT_EQ(coordinator_.download_calls(), 3);
  EXPECT_EQ(ReadFile(CachedFile(Sha256Hex(script))).value_or(""), script);
  // A second job with the same content needs no download.
  Assign("b", script);
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/b", 1}));
  EXPECT_EQ(coordinator_.download_calls(), 3);
}

TEST_F(Transfer, FetchesAgainWhatTheDiskHasSpoilt) {
  const std::string script = "error 2 fault\n";
  std::filesystem::create_directories(directory_ / "agent" / "files");
  ASSERT_TRUE(WriteFileAtomic(CachedFile(Sha256Hex(script)), "error 3 fault\n").ok());
  StartAgent();
  Assign("a", script);
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  EXPECT_EQ(coordinator_.Get({"jobs/a", 1}).ended->failure().kind(), lemo::v1::Failure::USER_ERROR);
}

TEST_F(Transfer, ReportsAFileThatIsNoMore) {
  StartAgent();
  lemo::v1::Assignment assignment = MakeAssignment("a", "hold\n");
  assignment.mutable_files(0)->set_name("files/none");
  assignment.mutable_run()->mutable_data()->mutable_train(0)->set_path("files/none");
  coordinator_.Assign(assignment);
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  EXPECT_THAT(coordinator_.Get({"jobs/a", 1}).ended->failure().message(),
              HasSubstr("cannot fetch files/none: no such file"));
}

TEST_F(Transfer, HandsOverAgainWhenTheCoordinatorWasAway) {
  StartAgent();
  coordinator_.Set([](auto* manners) { manners->refused_uploads = 2; });
  Assign("a", "publish\nresult\n");
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  const KnownAttempt attempt = coordinator_.Get({"jobs/a", 1});
  EXPECT_EQ(attempt.ended->outcome(), AttemptEnded::SUCCEEDED);
  EXPECT_EQ(attempt.uploads.size(), 3u);
}

}  // namespace
}  // namespace lemo::agent
