// The plain questions, and the exit codes of their failures.
#include "gmock/gmock.h"
#include "nlohmann/json.hpp"
#include "tests/integration/cli/run_lemo.h"

namespace lemo::cli {
namespace {

using lemo::v1::Job;
using ::testing::AllOf;
using ::testing::HasSubstr;

class RequestTest : public CliTest {
 protected:
  void SetUp() override {
    for (const char* name : {"jobs/a", "jobs/b", "jobs/c"}) {
      Job& job = state_.jobs[name];
      job.set_name(name);
      job.set_state(Job::QUEUED);
      job.set_reason("waits for devices");
      job.mutable_create_time()->set_seconds(1767225600);
    }
  }
};

TEST_F(RequestTest, ListTurnsThePages) {
  const Outcome table = Run({"job", "list"});
  EXPECT_EQ(table.code, 0) << table.err;
  EXPECT_EQ(table.out,
            "NAME    DISPLAY NAME  STATE   STEP  LOSS  CREATED               REASON\n"
            "jobs/a  -             QUEUED  -     -     2026-01-01T00:00:00Z  waits for devices\n"
            "jobs/b  -             QUEUED  -     -     2026-01-01T00:00:00Z  waits for devices\n"
            "jobs/c  -             QUEUED  -     -     2026-01-01T00:00:00Z  waits for devices\n");
  const Outcome limited = Run({"job", "list", "--limit", "2", "-o", "json"});
  EXPECT_EQ(nlohmann::json::parse(limited.out)["jobs"].size(), 2u);
}

TEST_F(RequestTest, TheAddressMayComeFromTheConfigFile) {
  Write(".config/lemo/config.yaml", "coordinator: " + server_->address() + "\n");
  const Outcome listed = Lemo(directory_, "", {"job", "list"}).Wait();
  EXPECT_EQ(listed.code, 0) << listed.err;
}

TEST_F(RequestTest, GetTakesTheNameEitherWay) {
  for (const char* name : {"b", "jobs/b"}) {
    const Outcome got = Run({"job", "get", name, "-o", "yaml"});
    EXPECT_EQ(got.code, 0) << got.err;
    EXPECT_THAT(got.out, AllOf(HasSubstr("name: jobs/b\n"), HasSubstr("state: QUEUED\n"),
                               HasSubstr("create_time: \"2026-01-01T00:00:00Z\"\n")));
  }
}

TEST_F(RequestTest, CancelAnswersTheNewState) {
  const Outcome cancelled = Run({"job", "cancel", "a"});
  EXPECT_EQ(cancelled.code, 0) << cancelled.err;
  EXPECT_EQ(cancelled.out, "jobs/a  CANCELLED  waits for devices\n");
}

TEST_F(RequestTest, LogsComeAsTheyAre) {
  state_.logs["jobs/a"] = "one\ntwo\n";
  EXPECT_EQ(Run({"job", "logs", "a"}).out, "one\ntwo\n");
}

TEST_F(RequestTest, WhatIsNotThereIsTheUsersFault) {
  const Outcome got = Run({"job", "get", "nobody"});
  EXPECT_EQ(got.code, 2);
  EXPECT_EQ(got.out, "");
  EXPECT_EQ(got.err, "error: cannot get jobs/nobody: there is no such thing\n");
  EXPECT_EQ(Run({"job", "watch", "nobody"}).code, 2);
  EXPECT_EQ(Run({"job", "logs", "nobody"}).code, 2);
  EXPECT_EQ(Run({"file", "put", "nothing"}).code, 2);
}

TEST_F(RequestTest, AServiceThatIsAwayIsTheServicesFault) {
  const std::string address = server_->address();
  server_.reset();
  for (const std::vector<std::string>& args : std::vector<std::vector<std::string>>{
           {"job", "list"}, {"job", "watch", "a"}, {"queue"}, {"worker", "list"}}) {
    const Outcome failed = Lemo(directory_, address, args).Wait();
    EXPECT_EQ(failed.code, 4) << args[0];
    EXPECT_THAT(failed.err,
                AllOf(HasSubstr("coordinator " + address + ": "), HasSubstr("lemo up")));
  }
  const Outcome doctor = Lemo(directory_, address, {"doctor"}).Wait();
  EXPECT_EQ(doctor.code, 2);
  EXPECT_THAT(doctor.out, HasSubstr("NO  coordinator"));
}

TEST_F(RequestTest, AMethodThatTheServiceLacksIsNotTheUsersFault) {
  const Outcome queue = Run({"queue"});
  EXPECT_EQ(queue.code, 4);
  EXPECT_THAT(queue.err, HasSubstr("lemo version"));
}

TEST_F(RequestTest, DoctorSeesTheServiceAndItsWorkers) {
  const Outcome none = Run({"doctor", "-o", "json"});
  const nlohmann::json checks = nlohmann::json::parse(none.out)["checks"];
  EXPECT_EQ(checks[1]["check"], "coordinator");
  EXPECT_EQ(checks[1]["good"], true) << none.out;
  EXPECT_EQ(checks[2]["good"], false) << "there is no worker";
  state_.workers.emplace_back().set_state(lemo::v1::Worker::READY);
  EXPECT_THAT(Run({"doctor"}).out,
              testing::AllOf(HasSubstr("ok  workers"), HasSubstr("ok  mpirun")));
}

}  // namespace
}  // namespace lemo::cli
