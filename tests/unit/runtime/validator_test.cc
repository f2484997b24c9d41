#include "coordinator/runtime/validator.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <future>
#include <string>

#include "common/files.h"
#include "google/protobuf/util/delimited_message_util.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;
using lemo::v1::Failure;

// A shell script stands in for lemo-train; each of its lives adds a line to `lives`.
class ValidatorTest : public testing::Test {
 protected:
  void SetUp() override { fs::create_directories(directory_); }
  void TearDown() override { fs::remove_all(directory_); }

  std::string Path(const char* name) const { return (directory_ / name).string(); }

  // What comes of a Start with that script.
  Verdict Validate(const std::string& script, int retries) {
    std::ofstream(Path("train")) << "#!/bin/sh\necho >> " << Path("lives") << "\n" << script;
    fs::permissions(Path("train"), fs::perms::owner_all);
    std::promise<Verdict> promise;
    ValidatorOptions options;
    options.train_program = Path("train");
    options.scratch = Path("scratch");
    options.retry_pause = absl::Milliseconds(1);
    options.retries = retries;
    Validator validator(
        options, /*artifacts=*/nullptr,
        [&promise](const std::string&, Verdict verdict) { promise.set_value(std::move(verdict)); });
    JobRecord record;
    record.job.set_name("jobs/a");
    validator.Start(record);
    return promise.get_future().get();
  }

  int64_t Lives() const {
    const std::string lines = ReadFile(Path("lives"), 1000).value_or("");
    return std::count(lines.begin(), lines.end(), '\n');
  }

  const fs::path directory_ =
      fs::path(testing::TempDir()) / ("lemo_validator_" + std::to_string(::getpid()));
};

TEST_F(ValidatorTest, ACheckThatWasKilledIsRunAgain) {
  EXPECT_EQ(Validate("[ $(wc -l < " + Path("lives") + ") -ge 3 ] || kill -9 $$\n", /*retries=*/5),
            std::nullopt);
  EXPECT_EQ(Lives(), 3);
}

TEST_F(ValidatorTest, GivesUpAfterItsRetries) {
  const Verdict verdict = Validate("kill -9 $$\n", /*retries=*/2);
  ASSERT_TRUE(verdict.has_value());
  EXPECT_EQ(verdict->kind(), Failure::SYSTEM_ERROR);
  EXPECT_EQ(Lives(), 3);
}

TEST_F(ValidatorTest, AFullDiskIsNotTheUsersFault) {
  lemo::v1::RunEvent event;
  event.mutable_error()->set_message(std::string("cannot write out: ") + std::strerror(ENOSPC));
  {
    std::ofstream said(Path("said"), std::ios::binary);
    google::protobuf::util::SerializeDelimitedToOstream(event, &said);
  }
  const std::string script = "cat " + Path("said") + " >&3\nexit 2\n";
  const Verdict verdict = Validate(script, /*retries=*/1);
  ASSERT_TRUE(verdict.has_value());
  EXPECT_EQ(verdict->kind(), Failure::SYSTEM_ERROR);
  EXPECT_EQ(Lives(), 2);
}

TEST_F(ValidatorTest, AUsersFaultIsNotTriedAgain) {
  lemo::v1::RunEvent event;
  event.mutable_error()->set_message("steps: must be above 0");
  {
    std::ofstream said(Path("said"), std::ios::binary);
    google::protobuf::util::SerializeDelimitedToOstream(event, &said);
  }
  const Verdict verdict = Validate("cat " + Path("said") + " >&3\nexit 2\n", /*retries=*/5);
  ASSERT_TRUE(verdict.has_value());
  EXPECT_EQ(verdict->kind(), Failure::USER_ERROR);
  EXPECT_EQ(Lives(), 1);
}

}  // namespace
}  // namespace lemo::coordinator
