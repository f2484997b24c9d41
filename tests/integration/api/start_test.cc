// Places in which a coordinator cannot start: one clear message and an exit code.
#include <gmock/gmock.h>
#include <sys/stat.h>

#include <fstream>

#include "common/files.h"
#include "coordinator/store/sqlite.h"
#include "tests/integration/api/coordinator.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class StartTest : public CoordinatorTest {
 protected:
  // One line, by the program itself, that has all of `words`.
  void ExpectSaid(const Ending& ending, int code, const std::vector<std::string>& words) {
    EXPECT_EQ(ending.code, code) << ending.said;
    EXPECT_EQ(ending.said.rfind("lemo-coordinator: ", 0), 0) << ending.said;
    EXPECT_EQ(std::count(ending.said.begin(), ending.said.end(), '\n'), 1) << ending.said;
    for (const std::string& word : words) EXPECT_THAT(ending.said, HasSubstr(word));
  }
  std::string Database() const { return (scratch_ / "data/lemo.db").string(); }
  // What a coordinator leaves that had something to keep.
  void MakeDatabase() {
    Start();
    AddModel();
    for (int i = 0; i < 20; ++i) Submit(Spec(Upload("{}\n")));
    ASSERT_EQ(Stop(), 0);
  }
};

TEST_F(StartTest, ADamagedDatabase) {
  MakeDatabase();
  {
    std::fstream file(Database(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(4096);
    file << std::string(fs::file_size(Database()) - 4096, '\x5a');
  }
  ExpectSaid(StartToFail(scratch_ / "data"), 2, {Database(), "damaged"});
  ASSERT_TRUE(WriteFileAtomic(Database(), std::string(8192, 'x')).ok());
  ExpectSaid(StartToFail(scratch_ / "data"), 2, {Database()});
}

TEST_F(StartTest, ANewerSchema) {
  MakeDatabase();
  ASSERT_TRUE((*SqlConnection::Open(Database()))->Execute("PRAGMA user_version = 99").ok());
  ExpectSaid(StartToFail(scratch_ / "data"), 2, {"schema 99", "newer program"});
}

TEST_F(StartTest, AnAddressThatOthersReachNeedsAWord) {
  const std::string dir = (scratch_ / "data").string();
  for (const char* listen : {"0.0.0.0:0", "[::]:0", "10.0.0.1:0", "127.example.com:0",
                             "localhost.example.com:0", "[::ffff:10.0.0.1]:0"}) {
    const Ending ending =
        Run(LEMO_COORDINATOR_BINARY, {"--dir", dir, "--train", train_, "--listen", listen});
    ExpectSaid(ending, 2, {listen, "not encrypted", "--insecure-listen"});
  }
  EXPECT_FALSE(fs::exists(dir)) << "refused before anything is made";
}

TEST_F(StartTest, ADirectoryInUse) {
  Start();
  ExpectSaid(StartToFail(scratch_ / "data"), 2,
             {"locked by process " + std::to_string(process_->pid())});
  EXPECT_EQ(Stop(), 0);
}

TEST_F(StartTest, AFileInPlaceOfTheDirectory) {
  ASSERT_TRUE(WriteFileAtomic(scratch_ / "file", "x").ok());
  ExpectSaid(StartToFail(scratch_ / "file"), 2, {"--dir", (scratch_ / "file").string()});
}

TEST_F(StartTest, ADirectoryThatCannotBeWritten) {
  fs::create_directory(scratch_ / "fixed");
  ::chmod((scratch_ / "fixed").c_str(), 0555);
  // Nobody may write below /proc, not even who may do all.
  const fs::path fixed = ::geteuid() == 0 ? fs::path("/proc/self") : scratch_ / "fixed";
  ExpectSaid(StartToFail(fixed), 2, {"lemo.db"});
}

TEST_F(StartTest, AFullDisk) {
  train::ProcessOptions full;
  full.file_size_limit = 1000;  // room for what it says
  ExpectSaid(StartToFail(scratch_ / "new", full), 2, {"lemo.db"});
  MakeDatabase();
  const Ending ending = StartToFail(scratch_ / "data", full);
  EXPECT_THAT(ending.code, testing::AnyOf(2, 4)) << ending.said;
  EXPECT_EQ(std::count(ending.said.begin(), ending.said.end(), '\n'), 1) << ending.said;
  Start();  // nothing was lost
  lemo::v1::ListJobsResponse jobs;
  ASSERT_TRUE(jobs_->ListJobs(Patiently().get(), {}, &jobs).ok());
  EXPECT_EQ(jobs.jobs_size(), 20);
  EXPECT_EQ(Stop(), 0);
}

TEST_F(StartTest, AnAddressInUse) {
  Start();
  train::Process second(
      LEMO_COORDINATOR_BINARY,
      {"--dir", (scratch_ / "second").string(), "--listen", address_, "--train", train_}, {});
  EXPECT_EQ(second.Wait(), 2);
  EXPECT_THAT(second.Errors(), HasSubstr("lemo-coordinator: --listen: cannot listen on "));
  EXPECT_EQ(Stop(), 0);
}

TEST_F(StartTest, OddOptions) {
  for (const std::vector<std::string>& options : std::vector<std::vector<std::string>>{
           {"--listen", "0.0.0.0:0"}, {"--keep-events", "-1"}, {"--keep-logs", "x"}}) {
    std::vector<std::string> args = {"--dir", (scratch_ / "odd").string(), "--train", train_};
    args.insert(args.end(), options.begin(), options.end());
    const Ending ending = Run(LEMO_COORDINATOR_BINARY, args);
    EXPECT_EQ(ending.code, 2);
    EXPECT_THAT(ending.said, HasSubstr(options[0]));
  }
}

}  // namespace
}  // namespace lemo::coordinator
