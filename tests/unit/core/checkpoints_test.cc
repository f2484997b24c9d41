// Checkpoints that the coordinator keeps for whoever goes on with a job.
#include "tests/unit/core/harness.h"

namespace lemo::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class Checkpoints : public CoreTest {
 protected:
  void Share(int64_t session, int attempt, int step, const std::vector<std::string>& contents,
             const std::string& job = kJob) {
    AgentMessage message;
    *message.mutable_checkpoint()->mutable_id() = Id(attempt, job);
    message.mutable_checkpoint()->mutable_checkpoint()->set_step(step);
    for (const std::string& sha256 : contents) {
      message.mutable_checkpoint()->mutable_checkpoint()->add_files()->set_sha256(sha256);
    }
    Say(session, message);
  }
  std::vector<std::string> Dropped() const {
    std::vector<std::string> all;
    for (const Effect& effect : last_) {
      if (const auto* drop = std::get_if<DropContent>(&effect)) {
        all.insert(all.end(), drop->sha256.begin(), drop->sha256.end());
      }
    }
    return all;
  }
};

TEST_F(Checkpoints, TheNextAttemptGetsTheNewest) {
  Run();
  Share(1, 1, 5, {"five"});
  EXPECT_THAT(Dropped(), IsEmpty());
  Share(1, 1, 10, {"ten"});
  EXPECT_THAT(Dropped(), ElementsAre("five"));
  Share(1, 1, 5, {"five"});  // repeated, since the agent had dialled anew
  EXPECT_EQ(Stored().checkpoint().step(), 10);
  Ended(1, 1, AttemptEnded::FAILED, 0);
  Connect(2, {}, "workers/b");
  Pass(absl::Seconds(2));
  ASSERT_EQ(State(), Job::STARTING);
  const auto sent = Sent(Stored().worker() == kWorker ? 1 : 2);
  ASSERT_FALSE(sent.empty());
  EXPECT_EQ(sent.back().assign().checkpoint().step(), 10);
}

TEST_F(Checkpoints, NoneIsTakenOfAnotherAttemptOrWorker) {
  Run();
  Connect(2, {}, "workers/b");
  Share(2, 1, 5, {"five"});
  Share(1, 2, 5, {"five"});
  EXPECT_FALSE(Stored().has_checkpoint());
  EXPECT_EQ(Count<Persist>(), 0);
}

TEST_F(Checkpoints, OneWithoutFilesIsNone) {
  Run();
  Share(1, 1, 5, {});
  EXPECT_FALSE(Stored().has_checkpoint());
}

TEST_F(Checkpoints, AnEndedJobKeepsNone) {
  Run();
  Share(1, 1, 5, {"five"});
  Do(CancelRequested{kJob});
  Ended(1, 1, AttemptEnded::STOPPED, 0);
  ASSERT_EQ(State(), Job::CANCELLED);
  EXPECT_FALSE(Stored().has_checkpoint());
  EXPECT_THAT(Dropped(), ElementsAre("five"));
}

TEST_F(Checkpoints, OneThatWasOnlyReadIsAsOldAsItWas) {
  Run();
  AgentMessage message;
  *message.mutable_events()->mutable_id() = Id(1);
  message.mutable_events()->set_first_sequence(1);
  lemo::v1::CheckpointEvent& event = *message.mutable_events()->add_events()->mutable_checkpoint();
  event.set_step(5);
  event.set_reason("resumed");
  Say(1, message);
  EXPECT_EQ(Stored().progress().checkpoint_step(), 5);
  EXPECT_FALSE(Stored().progress().has_checkpoint_time());
  event.set_reason("interval");
  message.mutable_events()->set_first_sequence(2);
  Say(1, message);
  EXPECT_EQ(Stored().progress().checkpoint_time().seconds(), absl::ToUnixSeconds(now_));
}

TEST_F(Checkpoints, TheAgentIsToldWhatIsTooLarge) {
  Connect(1);
  Submitted event;
  event.record.job.set_name(kJob);
  event.record.job.mutable_spec()->mutable_restart()->set_shared_checkpoint_bytes(0);
  ASSERT_TRUE(Ask(event).ok());
  Do(Validated{kJob, std::nullopt, 0});
  EXPECT_EQ(Sent(1).at(0).assign().shared_checkpoint_bytes(), 0);
  Connect(2, {}, "workers/b");
  Queue("jobs/2");
  EXPECT_EQ(Sent(2).at(0).assign().shared_checkpoint_bytes(), int64_t{1} << 30);
}

}  // namespace
}  // namespace lemo::coordinator
