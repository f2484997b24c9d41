// Agents that lie. The coordinator stays what it is, and answers.
#include <gmock/gmock.h>

#include <filesystem>
#include <limits>

#include "tests/integration/api/coordinator.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;
using grpc::StatusCode;
using lemo::v1::AgentMessage;
using lemo::v1::AttemptSignal;
using lemo::v1::Job;
using testing::HasSubstr;

class AgentTest : public CoordinatorTest {
 protected:
  AgentTest() { Start("data", {"--lease-seconds", "60"}); }
  ~AgentTest() override { EXPECT_EQ(Stop(), 0) << process_->Errors(); }

  static lemo::v1::AttemptId Id(const std::string& job, int attempt) {
    lemo::v1::AttemptId id;
    id.set_job(job);
    id.set_attempt(attempt);
    return id;
  }
  // All that was said before has been taken.
  static void Sync(Agent& agent) {
    static int64_t number = 1000;
    AgentMessage message;
    message.mutable_heartbeat()->set_number(++number);
    agent.Say(message);
    const auto answer = agent.Hear(
        [](const auto& heard) { return heard.has_lease() && heard.lease().number() == number; });
    EXPECT_TRUE(answer.has_lease());
  }
};

TEST_F(AgentTest, WhoSpeaksOfAttemptsThatAreNotItsOwnIsToldToEndThem) {
  const Placed placed = Place();
  Agent liar(Dial());
  liar.Hello("liar", {placed.id, Id("jobs/none", 1)});
  const auto welcome = liar.Hear([](const auto& message) { return message.has_welcome(); });
  EXPECT_EQ(welcome.welcome().attempts_size(), 0);
  for (const auto& id : {placed.id, Id(placed.id.job(), 7), Id(placed.id.job(), -1),
                         Id("jobs/none", 1), Id("../x", 1), Id("", 0)}) {
    liar.Say(Started(id));
    EXPECT_EQ(liar.Hear([](const auto& heard) { return heard.has_signal(); }).signal().signal(),
              AttemptSignal::KILL);
    liar.Say(Events(id, 1, 3));
    EXPECT_EQ(liar.Hear([](const auto& heard) { return heard.has_acknowledged(); })
                  .acknowledged()
                  .through_sequence(),
              3);
    liar.Say(Succeeded(id, 3, {}));
    EXPECT_EQ(liar.Hear([](const auto& heard) { return heard.has_forgotten(); })
                  .forgotten()
                  .id()
                  .attempt(),
              id.attempt());
    AgentMessage log;
    *log.mutable_log()->mutable_id() = id;
    log.mutable_log()->mutable_chunk()->set_data("a lie");
    liar.Say(log);
  }
  Sync(liar);
  const Job job = Get(placed.id.job());
  EXPECT_EQ(job.state(), Job::STARTING);
  EXPECT_EQ(job.worker(), "workers/a");
  EXPECT_FALSE(std::filesystem::exists(scratch_ / "data/logs"));
}

TEST_F(AgentTest, WrongSequenceNumbersChangeNothing) {
  const Placed placed = Place();
  placed.agent->Say(Started(placed.id));
  placed.agent->Say(Events(placed.id, 1, 2));
  Sync(*placed.agent);
  const int64_t before = Get(placed.id.job()).last_sequence();
  for (const int64_t first :
       {int64_t{0}, int64_t{-5}, int64_t{4}, std::numeric_limits<int64_t>::max(),
        std::numeric_limits<int64_t>::min()}) {
    placed.agent->Say(Events(placed.id, first, 1));
  }
  placed.agent->Say(Events(placed.id, 1, 2));  // known ones
  AgentMessage ended = Succeeded(placed.id, std::numeric_limits<int64_t>::max(), {});
  placed.agent->Say(ended);
  Sync(*placed.agent);
  const Job job = Get(placed.id.job());
  EXPECT_EQ(job.state(), Job::RUNNING);
  EXPECT_EQ(job.last_sequence(), before);
}

TEST_F(AgentTest, ASecondHelloEndsTheStream) {
  Agent agent(Dial());
  agent.Hello("a");
  agent.Hello("a");
  const grpc::Status status = agent.Finish();
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("second hello"));
}

TEST_F(AgentTest, BadBeginningsAreRefused) {
  {
    Agent agent(Dial());
    agent.Say(Started(Id("jobs/a", 1)));
    EXPECT_EQ(agent.Finish().error_code(), StatusCode::INVALID_ARGUMENT);
  }
  for (const std::string& worker : {std::string(), std::string("../x"), std::string("a/b"),
                                    std::string("a\0b", 3), std::string(100, 'a')}) {
    Agent agent(Dial());
    agent.Hello(worker);
    EXPECT_EQ(agent.Finish().error_code(), StatusCode::INVALID_ARGUMENT) << worker;
  }
  Agent agent(Dial());
  AgentMessage large;
  large.mutable_hello()->set_worker("workers/large");
  large.mutable_hello()->set_host(std::string(1 << 20, 'x'));
  agent.Say(large);
  EXPECT_EQ(agent.Finish().error_code(), StatusCode::INVALID_ARGUMENT);
}

TEST_F(AgentTest, OfTwoWithOneNameTheNewerSpeaks) {
  const Placed placed = Place();
  Agent other(Dial());
  other.Hello("a", {placed.id});
  EXPECT_TRUE(other.Hear([](const auto& heard) { return heard.has_welcome(); }).has_welcome());
  EXPECT_FALSE(placed.agent->Finish().ok());
  other.Say(Started(placed.id));
  Sync(other);
  EXPECT_EQ(Get(placed.id.job()).state(), Job::RUNNING);
}

TEST_F(AgentTest, SuccessWithoutItsFilesIsAFault) {
  const Placed placed = Place();
  lemo::v1::Artifact real, outside, absent, wrong;
  ASSERT_TRUE(PutResult(placed.id, "adapter/weights", "data", &real).ok());
  outside = real;
  outside.set_path("../../etc/passwd");
  absent = real;
  absent.set_path("adapter/config");
  absent.set_sha256(std::string(64, 'a'));
  wrong = real;
  wrong.set_bytes(5);
  const std::vector<std::pair<std::vector<lemo::v1::Artifact>, std::string>> lies = {
      {{}, "without a result"},
      {{real, outside}, "not inside the result"},
      {{real, absent}, "adapter/config that was not uploaded"},
      {{wrong}, "that was not uploaded"},
      {{real, real}, "two files adapter/weights"},
  };
  lemo::v1::AttemptId id = placed.id;
  for (const auto& [artifacts, says] : lies) {
    placed.agent->Say(Started(id));
    placed.agent->Say(Succeeded(id, 0, artifacts));
    const auto next = placed.agent->Hear([](const auto& heard) { return heard.has_assign(); });
    const Job job = Get(id.job());
    ASSERT_EQ(next.assign().id().attempt(), id.attempt() + 1) << job.ShortDebugString();
    EXPECT_EQ(job.artifacts_size(), 0);
    id = next.assign().id();
  }
  lemo::v1::WatchJobRequest watch;
  watch.set_name(id.job());
  const auto context = Patiently();
  const auto reader = jobs_->WatchJob(context.get(), watch);
  std::vector<std::string> reasons;
  lemo::v1::WatchJobResponse response;
  while (reasons.size() < lies.size() && reader->Read(&response)) {
    if (response.event().state().has_failure()) {
      reasons.push_back(response.event().state().failure().message());
    }
  }
  context->TryCancel();
  reader->Finish();
  ASSERT_EQ(reasons.size(), lies.size());
  for (size_t i = 0; i < lies.size(); ++i) EXPECT_THAT(reasons[i], HasSubstr(lies[i].second));
}

TEST_F(AgentTest, AResultCannotLeaveItsFolder) {
  const Placed placed = Place();
  lemo::v1::Artifact artifact;
  for (const std::string& path :
       {std::string("../x"), std::string("/x"), std::string("a/../../x"), std::string("."),
        std::string(".."), std::string("a//b"), std::string("a/"), std::string(),
        std::string("a\0b", 3), std::string(600, 'a'), std::string("a\\b"),
        std::string("checkpoints/../../x")}) {
    EXPECT_EQ(PutResult(placed.id, path, "data", &artifact).error_code(),
              StatusCode::INVALID_ARGUMENT)
        << path;
  }
  EXPECT_EQ(PutResult(Id(placed.id.job(), 2), "a", "data", &artifact).error_code(),
            StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(PutResult(Id("jobs/none", 1), "a", "data", &artifact).error_code(),
            StatusCode::FAILED_PRECONDITION);
}

TEST_F(AgentTest, UploadedPiecesAreChecked) {
  const Placed placed = Place();
  for (const int64_t offset : {int64_t{-1}, std::numeric_limits<int64_t>::min(), int64_t{1},
                               std::numeric_limits<int64_t>::max()}) {
    const auto context = Patiently();
    lemo::v1::Artifact answer;
    const auto writer = workers_->UploadArtifact(context.get(), &answer);
    lemo::v1::UploadArtifactRequest message;
    *message.mutable_start()->mutable_id() = placed.id;
    message.mutable_start()->mutable_artifact()->set_path("a");
    message.mutable_start()->mutable_artifact()->set_bytes(3);
    message.mutable_start()->mutable_artifact()->set_sha256(std::string(64, 'a'));
    writer->Write(message);
    message.mutable_chunk()->set_offset(offset);
    message.mutable_chunk()->set_data("abc");
    writer->Write(message);
    writer->WritesDone();
    EXPECT_THAT(writer->Finish().error_code(),
                testing::AnyOf(StatusCode::INVALID_ARGUMENT, StatusCode::OUT_OF_RANGE))
        << offset;
  }
  lemo::v1::Artifact artifact;
  EXPECT_TRUE(PutResult(placed.id, "a", "abc", &artifact).ok());
}

TEST_F(AgentTest, WhatComesAfterTheEndIsNotTaken) {
  const Placed placed = Place();
  Succeed(placed, "data");
  const Job before = Get(placed.id.job());
  placed.agent->Say(Events(placed.id, 2, 5));
  placed.agent->Say(Started(placed.id));
  placed.agent->Say(Succeeded(placed.id, 1, {}));
  Sync(*placed.agent);
  EXPECT_EQ(Get(placed.id.job()).etag(), before.etag());
  EXPECT_EQ(DownloadArtifact(placed.id.job(), "adapter/weights"), "data");
}

TEST_F(AgentTest, AnEventThatNobodyCouldReceiveIsRefused) {
  const Placed placed = Place();
  placed.agent->Say(Started(placed.id));
  placed.agent->Say(Events(placed.id, 1, 1, std::string(2 << 20, 'x')));
  const grpc::Status status = placed.agent->Finish();
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT) << status.error_message();
  EXPECT_THAT(status.error_message(), HasSubstr("bytes"));
}

TEST_F(AgentTest, ACapitalChecksumIsKeptInSmallLetters) {
  const Placed placed = Place();
  placed.agent->Say(Started(placed.id));
  lemo::v1::AgentMessage result;
  *result.mutable_events()->mutable_id() = placed.id;
  result.mutable_events()->set_first_sequence(1);
  result.mutable_events()->add_events()->mutable_result()->set_steps(1);
  placed.agent->Say(result);
  lemo::v1::Artifact artifact;
  ASSERT_TRUE(PutResult(placed.id, "a", "data", &artifact).ok());
  const std::string small = artifact.sha256();
  std::string* sha256 = artifact.mutable_sha256();
  std::transform(sha256->begin(), sha256->end(), sha256->begin(), ::toupper);
  placed.agent->Say(Succeeded(placed.id, 1, {artifact}));
  EXPECT_EQ(Await(placed.id.job(), Job::SUCCEEDED).artifacts(0).sha256(), small);
}

// An agent that says a lot and hears nothing: no thread stays with it.
TEST_F(AgentTest, AnAgentThatDoesNotReadIsLeft) {
  const auto threads = [this] {
    const fs::path tasks = "/proc/" + std::to_string(process_->pid()) + "/task";
    return std::distance(fs::directory_iterator(tasks), fs::directory_iterator());
  };
  {
    Agent first(Dial());
    first.Hello("first");
    Sync(first);
  }
  const auto before = threads();
  for (int count = 0; count < 4; ++count) {
    Agent deaf(Dial());
    deaf.Hello("deaf");
    AgentMessage message;
    for (int i = 0; i < 20'000; ++i) {
      message.mutable_heartbeat()->set_number(i);
      deaf.Say(message);
    }
  }
  Agent next(Dial());
  next.Hello("next");
  Sync(next);
  EXPECT_TRUE(Comes([&] { return threads() <= before + 4; })) << before << " became " << threads();
}

}  // namespace
}  // namespace lemo::coordinator
