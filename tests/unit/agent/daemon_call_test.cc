#include "worker/agent/daemon_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/unit/agent/scratch.h"
#include "worker/agent/gang_peers.h"

namespace lemo::agent {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(DaemonArguments, AreThoseOfOrtedWithoutTheShellsQuotes) {
  EXPECT_THAT(DaemonArguments({" orted", "-mca", "ess", "\"env\"", "1"}),
              ElementsAre("-mca", "ess", "env", "1"));
  EXPECT_THAT(
      DaemonArguments({" PATH=/x:$PATH ; export PATH ; /usr/bin/orted", "-mca", "a", "\"^s1,s2\""}),
      ElementsAre("-mca", "a", "^s1,s2"));
  EXPECT_THAT(DaemonArguments({"sh", "-c", "rm -rf /"}), IsEmpty());
}

TEST(GangFile, IsReadAsWrittenAndForItsOwnerOnly) {
  const Scratch scratch;
  lemo::v1::Assignment assignment;
  assignment.mutable_id()->set_job("jobs/a");
  assignment.mutable_id()->set_attempt(4);
  assignment.set_gang_token("token");
  for (const char* worker : {"workers/lead", "workers/b", "workers/c"}) {
    lemo::v1::AssignedNode& node = *assignment.add_nodes();
    node.set_worker(worker);
    node.mutable_endpoint()->set_address(std::string(worker + 8) + ":7420");
  }
  const auto gang = GangFile::Of(assignment);
  ASSERT_TRUE(gang.ok()) << gang.status();
  const std::filesystem::path path = scratch.path() / "gang";
  ASSERT_TRUE(gang->Write(path).ok());
  ASSERT_TRUE(gang->Write(path).ok());  // over what an earlier agent left
  EXPECT_EQ(std::filesystem::status(path).permissions(),
            std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  const auto read = GangFile::Read(path);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->key.id().job(), "jobs/a");
  EXPECT_EQ(read->key.id().attempt(), 4);
  EXPECT_EQ(read->key.token(), "token");
  ASSERT_EQ(read->peers.size(), 2u);
  EXPECT_EQ(read->peers[0].host, "lemo-1");
  EXPECT_EQ(read->peers[1].worker, "workers/c");
  EXPECT_EQ(read->peers[1].address, "c:7420");
  scratch.Write("torn", R"({"job": "jobs/a", "att)");
  EXPECT_EQ(GangFile::Read(scratch.path() / "torn").status().code(), absl::StatusCode::kDataLoss);

  assignment.mutable_nodes(2)->mutable_endpoint()->clear_address();
  EXPECT_EQ(GangFile::Of(assignment).status().code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace lemo::agent
