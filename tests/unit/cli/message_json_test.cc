// What service messages need beyond those of lemo-train: enums, bytes and times.
#include "common/message_json.h"

#include "gmock/gmock.h"
#include "google/protobuf/util/message_differencer.h"
#include "gtest/gtest.h"
#include "lemo/v1/job.pb.h"
#include "lemo/v1/job_service.pb.h"

namespace lemo {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

template <typename Message>
std::vector<std::string> Read(const std::string& json, Message* message) {
  JsonFault fault;
  const std::optional<LocatedJson> root = ParseLocatedJson(json, &fault);
  if (!root) return {fault.reason};
  Violations violations;
  MessageReader("f", Message::descriptor(), &violations).ReadMessage(*root, "", message);
  std::vector<std::string> faults;
  for (const Violation& violation : violations.kept()) faults.push_back(violation.ToString());
  return faults;
}

TEST(MessageJson, WritesEnumsByNameBytesAsBase64AndTimesAsText) {
  lemo::v1::Job job;
  job.set_state(lemo::v1::Job::RUNNING);
  job.mutable_create_time()->set_seconds(1767225600);
  job.mutable_update_time()->set_nanos(5'000'000);
  const nlohmann::ordered_json json = MessageToJson(job, {});
  EXPECT_EQ(json["state"], "RUNNING");
  EXPECT_EQ(json["create_time"], "2026-01-01T00:00:00Z");
  EXPECT_EQ(json["update_time"], "1970-01-01T00:00:00.005Z");
  EXPECT_FALSE(json.contains("reason_code")) << "an enum at its zero is not said";
  EXPECT_FALSE(json.contains("end_time"));

  lemo::v1::LogChunk chunk;
  chunk.set_data(std::string("\xff\x00z", 3));
  EXPECT_EQ(MessageToJson(chunk, {})["data"], "/wB6");
}

TEST(MessageJson, WritesEverythingWhenAsked) {
  const nlohmann::ordered_json json = MessageToJson(lemo::v1::Job(), {.everything = true});
  EXPECT_EQ(json["state"], "STATE_UNSPECIFIED");
  EXPECT_TRUE(json["end_time"].is_null());
}

TEST(MessageJson, KeepsTheNumberOfAnUnknownEnumValue) {
  lemo::v1::Job job;
  job.set_state(static_cast<lemo::v1::Job::State>(99));
  EXPECT_EQ(MessageToJson(job, {})["state"], 99);
}

TEST(MessageJson, ReadsBackWhatItWrote) {
  lemo::v1::Job job;
  job.set_name("jobs/a");
  job.set_state(lemo::v1::Job::PAUSED);
  job.mutable_create_time()->set_seconds(1767225600);
  job.mutable_create_time()->set_nanos(250'000'000);
  lemo::v1::Job read;
  EXPECT_THAT(Read(MessageToJson(job, {}).dump(), &read), IsEmpty());
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(job, read)) << read.DebugString();

  lemo::v1::LogChunk chunk, chunk_read;
  chunk.set_data(std::string("\xff\x00z", 3));
  EXPECT_THAT(Read(MessageToJson(chunk, {}).dump(), &chunk_read), IsEmpty());
  EXPECT_EQ(chunk_read.data(), chunk.data());
}

TEST(MessageJson, ReadsEnumsByNumberToo) {
  lemo::v1::Job job;
  EXPECT_THAT(Read(R"({"state": 5})", &job), IsEmpty());
  EXPECT_EQ(job.state(), lemo::v1::Job::RUNNING);
}

TEST(MessageJson, NamesWhatIsNoEnumTimeOrBase64) {
  lemo::v1::Job job;
  EXPECT_THAT(
      Read(R"({"state": "RUNING",
               "stop_request": 7,
               "create_time": "yesterday"})",
           &job),
      ElementsAre("state: f:1: unknown value \"RUNING\"; did you mean RUNNING?",
                  "stop_request: f:2: expected one of STOP_NONE, STOP_PAUSE, STOP_CANCEL, got 7",
                  "create_time: f:3: expected a time like 2026-01-31T17:05:09Z, got the string "
                  "\"yesterday\""));
  lemo::v1::LogChunk chunk;
  EXPECT_THAT(Read(R"({"data": "*"})", &chunk),
              ElementsAre("data: f:1: expected bytes as base64, got the string \"*\""));
}

}  // namespace
}  // namespace lemo
