// SIGTERM ends a coordinator soon, whatever is under way.
#include <gmock/gmock.h>

#include <csignal>
#include <future>

#include "common/files.h"
#include "tests/integration/api/coordinator.h"

namespace lemo::coordinator {
namespace {

constexpr std::chrono::seconds kBound{5};

class ShutdownTest : public CoordinatorTest {
 protected:
  void ExpectToEndSoon() {
    const auto begin = std::chrono::steady_clock::now();
    EXPECT_EQ(Stop(), 0) << process_->Errors();
    EXPECT_LT(std::chrono::steady_clock::now() - begin, kBound);
  }
};

TEST_F(ShutdownTest, WithWatchersAnUploadAndAnAgent) {
  Start();
  const Placed placed = Place();
  placed.agent->Say(Started(placed.id));
  lemo::v1::AgentMessage heartbeat;
  heartbeat.mutable_heartbeat()->set_number(1);
  placed.agent->Say(heartbeat);
  placed.agent->Hear([](const auto& heard) { return heard.has_lease(); });
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<lemo::v1::WatchJobResponse>>> watches;
  lemo::v1::WatchJobRequest watch;
  watch.set_name(placed.id.job());
  for (int i = 0; i < 50; ++i) {
    contexts.push_back(Patiently());
    watches.push_back(jobs_->WatchJob(contexts.back().get(), watch));
    lemo::v1::WatchJobResponse first;
    ASSERT_TRUE(watches.back()->Read(&first));
  }
  lemo::v1::ReadLogsRequest logs;
  logs.set_name(placed.id.job());
  logs.set_follow(true);
  contexts.push_back(Patiently());
  const auto log = jobs_->ReadLogs(contexts.back().get(), logs);
  contexts.push_back(Patiently());
  lemo::v1::File file;
  const auto upload = files_->UploadFile(contexts.back().get(), &file);
  lemo::v1::UploadFileRequest message;
  message.mutable_start()->set_upload_id("u");
  message.mutable_start()->set_display_name("d");
  message.mutable_start()->set_bytes(10);
  message.mutable_start()->set_sha256(Sha256Hex("0123456789"));
  ASSERT_TRUE(upload->Write(message));
  message.mutable_chunk()->set_data("01234");
  ASSERT_TRUE(upload->Write(message));
  lemo::v1::GetUploadRequest get;
  get.set_upload_id("u");
  ASSERT_TRUE(Comes([&] {
    lemo::v1::Upload received;
    return files_->GetUpload(Patiently().get(), get, &received).ok() &&
           received.received_bytes() == 5;
  }));

  ExpectToEndSoon();
  for (size_t i = 0; i < watches.size(); ++i) {
    lemo::v1::WatchJobResponse response;
    while (watches[i]->Read(&response)) {
    }
    EXPECT_FALSE(watches[i]->Finish().ok());
  }
  EXPECT_FALSE(upload->Finish().ok());
  EXPECT_FALSE(log->Finish().ok());
  EXPECT_FALSE(placed.agent->Finish().ok());

  // The upload goes on where it was, and so does the job.
  Start();
  EXPECT_EQ(Get(placed.id.job()).state(), lemo::v1::Job::RUNNING);
  std::vector<lemo::v1::UploadFileRequest> rest(2);
  *rest[0].mutable_start() = {};
  rest[0].mutable_start()->set_upload_id("u");
  rest[0].mutable_start()->set_display_name("d");
  rest[0].mutable_start()->set_bytes(10);
  rest[0].mutable_start()->set_sha256(Sha256Hex("0123456789"));
  rest[1].mutable_chunk()->set_offset(5);
  rest[1].mutable_chunk()->set_data("56789");
  const grpc::Status resumed = TryUpload(rest, &file);
  ASSERT_TRUE(resumed.ok()) << resumed.error_message();
  EXPECT_EQ(Download(file.name()), "0123456789");
  ExpectToEndSoon();
}

TEST_F(ShutdownTest, WithChecksThatTakeForEver) {
  Start();
  AddModel();
  const std::string file = Upload("{}\n");
  ASSERT_TRUE(WriteFileAtomic(scratch_ / "slow", "").ok());
  const lemo::v1::Job job = Submit(Spec(file));
  auto asked = std::async(std::launch::async, [&] {
    lemo::v1::SubmitJobRequest request;
    *request.mutable_spec() = Spec(file);
    request.set_validate_only(true);
    lemo::v1::Job answer;
    return jobs_->SubmitJob(Patiently().get(), request, &answer);
  });
  // Both children are there: their folders are.
  ASSERT_TRUE(Comes([&] {
    std::error_code error;
    const std::filesystem::directory_iterator all(scratch_ / "data/validation", error);
    return !error && std::distance(begin(all), end(all)) == 2;
  }));
  ExpectToEndSoon();
  EXPECT_FALSE(asked.get().ok());
  std::filesystem::remove(scratch_ / "slow");
  Start();
  Await(job.name(), lemo::v1::Job::QUEUED);  // checked anew
  ExpectToEndSoon();
}

}  // namespace
}  // namespace lemo::coordinator
