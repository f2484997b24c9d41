// Jobs that ended so long ago that their events and logs were dropped.
#include <gmock/gmock.h>

#include "coordinator/store/sqlite.h"
#include "tests/integration/api/coordinator.h"

namespace lemo::coordinator {
namespace {

using grpc::StatusCode;
using lemo::v1::Job;
using testing::HasSubstr;

class ExpiredTest : public CoordinatorTest {
 protected:
  // A job that succeeded, with a log, and that the database then says to have ended in 1970.
  void SetUp() override {
    Start();
    Placed placed = Place();
    name_ = placed.id.job();
    lemo::v1::AgentMessage log;
    *log.mutable_log()->mutable_id() = placed.id;
    log.mutable_log()->mutable_chunk()->set_data("text");
    placed.agent->Say(log);
    Succeed(placed, "data");
    placed.agent.reset();
    last_ = Get(name_).last_sequence();
    ASSERT_EQ(Stop(), 0);
    const auto db = SqlConnection::Open((scratch_ / "data/lemo.db").string());
    Job job;
    ASSERT_TRUE(job.ParseFromString(*(*db)->QueryText("SELECT job FROM jobs")));
    job.mutable_end_time()->set_seconds(1);
    const std::string bytes = job.SerializeAsString();
    ASSERT_TRUE((*db)->Run("UPDATE jobs SET job = ?, end_ns = 1", {SqlBlob(bytes)}).ok());
  }
  // As the sweeps of some hours would leave it.
  void Sweep() {
    const auto db = SqlConnection::Open((scratch_ / "data/lemo.db").string());
    ASSERT_TRUE((*db)->Execute("DELETE FROM events; UPDATE jobs SET retention = 2").ok());
    std::filesystem::remove_all(scratch_ / "data/logs");
  }
  grpc::Status Watch(int64_t after) {
    lemo::v1::WatchJobRequest request;
    request.set_name(name_);
    request.set_after_sequence(after);
    const auto context = Patiently();
    const auto reader = jobs_->WatchJob(context.get(), request);
    lemo::v1::WatchJobResponse response;
    while (reader->Read(&response)) {
    }
    return reader->Finish();
  }
  grpc::Status Logs() {
    lemo::v1::ReadLogsRequest request;
    request.set_name(name_);
    const auto context = Patiently();
    const auto reader = jobs_->ReadLogs(context.get(), request);
    lemo::v1::LogChunk chunk;
    while (reader->Read(&chunk)) {
    }
    return reader->Finish();
  }

  std::string name_;
  int64_t last_ = 0;
};

TEST_F(ExpiredTest, ItIsSaidThatTheyAreGoneAndTheJobIsNot) {
  Sweep();
  Start();
  EXPECT_EQ(Get(name_).state(), Job::SUCCEEDED);
  EXPECT_EQ(DownloadArtifact(name_, "adapter/weights"), "data");
  for (const grpc::Status& status : {Watch(0), Watch(last_ - 1), Logs()}) {
    EXPECT_EQ(status.error_code(), StatusCode::OUT_OF_RANGE);
    EXPECT_THAT(status.error_message(), HasSubstr(name_ + " ended long ago"));
  }
  EXPECT_TRUE(Watch(last_).ok()) << "who has seen all misses none";
  lemo::v1::ListCheckpointsRequest request;
  request.set_name(name_);
  lemo::v1::ListCheckpointsResponse checkpoints;
  EXPECT_EQ(jobs_->ListCheckpoints(Patiently().get(), request, &checkpoints).error_code(),
            StatusCode::OUT_OF_RANGE);
  std::string output;
  const Ending watched =
      Run(LEMO_PROGRAM, {"--coordinator", address_, "job", "watch", name_}, &output);
  EXPECT_EQ(watched.code, 0) << watched.said;
  EXPECT_THAT(output, HasSubstr(name_ + " succeeded"));
  EXPECT_EQ(Stop(), 0);
}

TEST_F(ExpiredTest, WhatIsStillThereIsGiven) {
  Start("data", {"--keep-events", "0", "--keep-logs", "0"});
  EXPECT_TRUE(Watch(0).ok());
  EXPECT_TRUE(Logs().ok());
  EXPECT_EQ(Stop(), 0);
}

}  // namespace
}  // namespace lemo::coordinator
