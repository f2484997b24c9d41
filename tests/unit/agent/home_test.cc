#include "worker/agent/home.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/agent/scratch.h"

namespace lemo::agent {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

TEST(Home, KeepsItsNameAndHasOneAgent) {
  const Scratch scratch;
  std::string worker;
  {
    const auto home = Home::Open(scratch.path() / "dir");
    ASSERT_TRUE(home.ok()) << home.status();
    worker = home->worker();
    EXPECT_THAT(worker, StartsWith("workers/"));
    const auto second = Home::Open(scratch.path() / "dir");
    ASSERT_FALSE(second.ok());
    EXPECT_TRUE(absl::IsFailedPrecondition(second.status()));
  }
  EXPECT_EQ(Home::Open(scratch.path() / "dir")->worker(), worker);
  EXPECT_NE(Home::Open(scratch.path() / "other")->worker(), worker);
}

TEST(Home, RefusesAStrangeId) {
  const Scratch scratch;
  scratch.Write("id", "something else");
  const auto home = Home::Open(scratch.path());
  ASSERT_FALSE(home.ok());
  EXPECT_THAT(std::string(home.status().message()), HasSubstr("something else"));
}

TEST(Home, GivesNoDirectoryOutsideItself) {
  const Scratch scratch;
  const auto home = Home::Open(scratch.path());
  ASSERT_TRUE(home.ok());
  EXPECT_EQ(home->JobDirectory("jobs/a-1_B"), scratch.path() / "jobs" / "a-1_B");
  for (const char* name :
       {"", "jobs/", "jobs/..", "jobs/.", "jobs/a/b", "a", "/jobs/a", "jobs/a b"}) {
    EXPECT_FALSE(home->JobDirectory(name)) << name;
  }
  EXPECT_FALSE(home->JobDirectory("jobs/" + std::string(1000, 'a')));
}

}  // namespace
}  // namespace lemo::agent
