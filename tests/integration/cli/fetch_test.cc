// lemo job fetch and lemo file get: what comes is whole, true, and where it belongs.
#include <algorithm>

#include "gmock/gmock.h"
#include "tests/integration/cli/run_lemo.h"

namespace lemo::cli {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using FetchTest = CliTest;

// Names in `directory`, hidden ones too, and those of the child's output left out.
std::vector<std::string> Names(const fs::path& directory) {
  std::vector<std::string> names;
  if (!fs::exists(directory)) return names;
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    if (entry.is_regular_file()) names.push_back(fs::relative(entry, directory).string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

TEST_F(FetchTest, BringsEveryArtifactOnce) {
  const std::string weights(10'500, 'w');
  AddSucceededJob({{"adapter/weights", weights}, {"report.html", "<p>"}, {"empty", ""}});
  const Outcome first = Run({"job", "fetch", "a", "--out", "out"});
  EXPECT_EQ(first.code, 0) << first.err;
  EXPECT_THAT(Names(directory_ / "out"), ElementsAre("adapter/weights", "empty", "report.html"));
  EXPECT_EQ(Read("out/adapter/weights"), weights);
  EXPECT_THAT(first.out, HasSubstr("out/adapter/weights  10,500"));

  const size_t downloads = state_.downloaded_from.size();
  EXPECT_EQ(Run({"job", "fetch", "jobs/a", "--out", "out"}).code, 0);
  EXPECT_EQ(state_.downloaded_from.size(), downloads) << "what is there does not come again";
}

TEST_F(FetchTest, GoesOnWhereTheStreamBroke) {
  std::string weights;
  for (int i = 0; i < 5000; ++i) weights += std::to_string(i);
  AddSucceededJob({{"weights", weights}});
  state_.break_download_after = 3000;
  const Outcome fetched = Run({"job", "fetch", "a"});
  EXPECT_EQ(fetched.code, 0) << fetched.err;
  EXPECT_THAT(state_.downloaded_from, ElementsAre(0, 3000));
  EXPECT_EQ(Read("a/weights"), weights);
  EXPECT_THAT(Names(directory_ / "a"), ElementsAre("weights"));
}

TEST_F(FetchTest, RefusesPathsThatLeadOutBeforeAnyByteComes) {
  AddSucceededJob({{"a-good-one", "x"}, {"sub/../../evil", "evil"}});
  const Outcome fetched = Run({"job", "fetch", "a", "--out", "out"});
  EXPECT_EQ(fetched.code, 2);
  EXPECT_THAT(fetched.err, HasSubstr("refused the path \"sub/../../evil\""));
  EXPECT_THAT(state_.downloaded_from, IsEmpty());
  EXPECT_FALSE(fs::exists(directory_ / "evil"));
  EXPECT_FALSE(fs::exists(directory_ / "out"));
}

TEST_F(FetchTest, RefusesToWriteThroughALink) {
  AddSucceededJob({{"sub/file", "x"}});
  fs::create_directories(directory_ / "out");
  fs::create_directories(directory_ / "elsewhere");
  fs::create_directory_symlink(directory_ / "elsewhere", directory_ / "out/sub");
  EXPECT_EQ(Run({"job", "fetch", "a", "--out", "out"}).code, 2);
  EXPECT_THAT(Names(directory_ / "elsewhere"), IsEmpty());
}

TEST_F(FetchTest, KeepsNothingOfOtherContents) {
  AddSucceededJob({{"weights", "the true bytes"}});
  state_.artifacts["weights"] = "the fake bytes";
  const Outcome fetched = Run({"job", "fetch", "a", "--out", "out"});
  EXPECT_EQ(fetched.code, 4);
  EXPECT_THAT(fetched.err, HasSubstr("its SHA-256 is"));
  EXPECT_THAT(Names(directory_ / "out"), IsEmpty());
}

TEST_F(FetchTest, RefusesMoreOrFewerBytesThanAnnounced) {
  AddSucceededJob({{"weights", "12345"}});
  for (const char* wrong : {"123456", "1234"}) {
    state_.artifacts["weights"] = wrong;
    EXPECT_EQ(Run({"job", "fetch", "a", "--out", "out"}).code, 4) << wrong;
    EXPECT_FALSE(fs::exists(directory_ / "out/weights"));
  }
}

TEST_F(FetchTest, DoesNotWriteOverAFileUnlessTold) {
  AddSucceededJob({{"notes", "new"}});
  Write("out/notes", "mine");
  EXPECT_EQ(Run({"job", "fetch", "a", "--out", "out"}).code, 2);
  EXPECT_EQ(Read("out/notes"), "mine");
  EXPECT_EQ(Run({"job", "fetch", "a", "--out", "out", "--replace"}).code, 0);
  EXPECT_EQ(Read("out/notes"), "new");
}

TEST_F(FetchTest, AJobThatHasNotSucceededHasNothing) {
  AddSucceededJob({{"weights", "x"}});
  state_.jobs["jobs/a"].set_state(lemo::v1::Job::RUNNING);
  const Outcome fetched = Run({"job", "fetch", "a"});
  EXPECT_EQ(fetched.code, 2);
  EXPECT_THAT(fetched.err, HasSubstr("jobs/a is RUNNING"));
  EXPECT_THAT(fetched.err, HasSubstr("lemo job watch jobs/a"));
}

TEST_F(FetchTest, ReportBringsOnlyTheReport) {
  AddSucceededJob({{"weights", "x"}, {"report.html", "<p>"}});
  const Outcome report = Run({"job", "report", "a", "--out", "out"});
  EXPECT_EQ(report.code, 0) << report.err;
  EXPECT_THAT(Names(directory_ / "out"), ElementsAre("report.html"));
  EXPECT_THAT(report.out, HasSubstr((directory_ / "out/report.html").string()));
}

TEST_F(FetchTest, AFileComesBackAsItWent) {
  const std::string rows(5'000, 'r');
  Write("rows.jsonl", rows);
  ASSERT_EQ(Run({"file", "put", "rows.jsonl"}).code, 0);
  const Outcome got = Run({"file", "get", "f1", "--out", "back/rows.jsonl"});
  EXPECT_EQ(got.code, 0) << got.err;
  EXPECT_EQ(Read("back/rows.jsonl"), rows);
}

}  // namespace
}  // namespace lemo::cli
