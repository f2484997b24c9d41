// The agent with the real trainer on a small model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/integration/agent/harness.h"

namespace lemo::agent {
namespace {

using lemo::v1::AttemptEnded;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr char kAdapter[] = "adapter/adapter_model.safetensors";

class Train : public AgentTest {
 protected:
  AgentOptions Options() const override {
    AgentOptions options = AgentTest::Options();
    options.train = LEMO_TRAIN_BINARY;
    options.model_roots = {LEMO_SOURCE_DIR "/tests/fixtures"};
    return options;
  }

  lemo::v1::Assignment MakeRun(const std::string& id, int steps, const std::string& extra = "",
                               int attempt = 1) {
    std::string rows;
    for (int i = 0; i < 40; ++i) {
      rows += "{\"text\": \"one day the little girl had ball " + std::to_string(i) + "\"}\n";
    }
    lemo::v1::Assignment assignment = MakeAssignment(id, rows + extra, attempt);
    assignment.set_model_path(LEMO_SOURCE_DIR "/tests/fixtures/stories260k");
    lemo::v1::RunSpec& run = *assignment.mutable_run();
    run.mutable_model()->set_compute_type("float32");
    run.mutable_data()->set_max_length(64);
    run.mutable_tuner()->mutable_lora()->set_rank(4);
    run.mutable_train()->set_steps(steps);
    run.mutable_train()->set_batch_sequences(2);
    run.mutable_train()->set_learning_rate(0.003);
    return assignment;
  }
};

TEST_F(Train, HandsOverAnAdapter) {
  StartAgent();
  coordinator_.Assign(MakeRun("a", 4));
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  const KnownAttempt attempt = coordinator_.Get({"jobs/a", 1});
  ASSERT_EQ(attempt.ended->outcome(), AttemptEnded::SUCCEEDED) << attempt.ended->DebugString();
  EXPECT_THAT(attempt.faults, IsEmpty());
  int steps = 0, results = 0;
  for (const lemo::v1::RunEvent& event : attempt.events) {
    steps += event.has_step();
    results += event.has_result();
    EXPECT_THAT(event.DebugString(), Not(HasSubstr(directory_.string())));
  }
  EXPECT_EQ(steps, 4);
  EXPECT_EQ(results, 1);
  for (const char* path : {kAdapter, "adapter/adapter_config.json", "report.json", "report.html",
                           "trainer_state.json"}) {
    EXPECT_TRUE(attempt.uploads.contains(path)) << path;
  }
  EXPECT_TRUE(WaitUntilGone(JobDirectory("a")));
}

TEST_F(Train, AStoppedJobGoesOnToTheSameAdapter) {
  StartAgent();
  coordinator_.Assign(MakeRun("whole", 30));
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/whole", 1}));
  const lemo::v1::Assignment part = MakeRun("part", 30);
  coordinator_.Assign(part);
  ASSERT_TRUE(coordinator_.WaitForSteps({"jobs/part", 1}, 2));
  coordinator_.Signal(part.id(), lemo::v1::AttemptSignal::CHECKPOINT_AND_STOP);
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/part", 1}));
  const AttemptEnded stopped = *coordinator_.Get({"jobs/part", 1}).ended;
  ASSERT_EQ(stopped.outcome(), AttemptEnded::STOPPED) << stopped.DebugString();
  coordinator_.Assign(MakeRun("part", 30, "", 2));
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/part", 2}));
  const KnownAttempt second = coordinator_.Get({"jobs/part", 2});
  ASSERT_EQ(second.ended->outcome(), AttemptEnded::SUCCEEDED) << second.ended->DebugString();
  int steps = 0;
  for (const lemo::v1::RunEvent& event : second.events) steps += event.has_step();
  EXPECT_LT(steps, 30);
  EXPECT_EQ(second.uploads.at(kAdapter), coordinator_.Get({"jobs/whole", 1}).uploads.at(kAdapter));
}

TEST_F(Train, FaultsOfTheDataNameTheUploadedFile) {
  StartAgent();
  coordinator_.Assign(MakeRun("a", 4, "{\"text\": 7}\n"));
  ASSERT_TRUE(coordinator_.WaitForEnd({"jobs/a", 1}));
  const AttemptEnded ended = *coordinator_.Get({"jobs/a", 1}).ended;
  EXPECT_EQ(ended.outcome(), AttemptEnded::FAILED);
  EXPECT_EQ(ended.failure().kind(), lemo::v1::Failure::USER_ERROR) << ended.DebugString();
  ASSERT_GE(ended.failure().violations_size(), 1);
  EXPECT_EQ(ended.failure().violations(0).file(), "files/a");
  EXPECT_EQ(ended.failure().violations(0).line(), 41);
}

}  // namespace
}  // namespace lemo::agent
