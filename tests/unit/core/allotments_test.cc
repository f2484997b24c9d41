// Contracts that are cut for a neighbour while their jobs run, and given back.
#include <string>
#include <utility>
#include <vector>

#include "tests/unit/core/harness.h"

namespace lemo::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr char kOther[] = "jobs/2";

using Change = lemo::v1::ContractChange;

class AllotmentTest : public CoreTest {
 protected:
  void ConnectWithMemory(int64_t session, int64_t bytes,
                         std::vector<std::pair<std::string, int>> attempts = {}, int devices = 1) {
    AgentConnected event;
    event.session = session;
    event.hello.set_worker(kWorker);
    for (int i = 0; i < devices; ++i) {
      lemo::v1::Device& device = *event.hello.add_devices();
      device.set_index(i);
      device.set_kind(lemo::v1::Device::CPU);
      device.set_memory_bytes(bytes);
    }
    for (const auto& [job, attempt] : attempts) {
      *event.hello.add_attempts()->mutable_id() = Id(attempt, job);
    }
    Do(event);
  }
  // Accepted under a contract of so many bytes a rank.
  void Contracted(const std::string& job, int64_t bytes, bool elastic = false,
                  int64_t min_bytes = 0, int64_t own_bound = 0, int ranks = 1) {
    Submitted event;
    event.record.job.set_name(job);
    lemo::v1::JobSpec& spec = *event.record.job.mutable_spec();
    spec.mutable_plan();
    if (elastic) spec.mutable_plan()->set_elastic(true);
    if (min_bytes > 0) spec.mutable_plan()->set_min_memory_bytes(min_bytes);
    if (ranks > 1) spec.mutable_resources()->set_ranks(ranks);
    if (own_bound > 0) spec.mutable_run()->mutable_memory()->set_budget_bytes(own_bound);
    ASSERT_TRUE(Ask(event).ok());
    lemo::v1::Contract contract;
    contract.set_memory_bytes(bytes);
    contract.mutable_offer()->set_ranks(ranks);
    contract.mutable_offer()->set_device("cpu");
    contract.mutable_offer()->mutable_high()->set_total(bytes);
    Do(Validated{job, std::nullopt, 0, contract});
  }
  // A step of the first attempt.
  void Step(int number, int64_t budget, int64_t peak, int64_t least,
            const std::string& job = kJob) {
    AgentMessage message;
    *message.mutable_events()->mutable_id() = Id(1, job);
    message.mutable_events()->set_first_sequence(number);
    lemo::v1::StepEvent& step = *message.mutable_events()->add_events()->mutable_step();
    step.set_step(number);
    step.mutable_memory()->set_budget_bytes(budget);
    step.mutable_memory()->set_peak_bytes(peak);
    step.mutable_memory()->set_least_bytes(least);
    Say(1, message);
  }
  // The budgets that the last event told the worker.
  std::vector<int64_t> Budgets(int64_t session = 1) const {
    std::vector<int64_t> bytes;
    for (const CoordinatorMessage& message : Sent(session)) {
      if (message.has_budget()) bytes.push_back(message.budget().bytes());
    }
    return bytes;
  }
  std::vector<Change::Kind> Changes() const {
    std::vector<Change::Kind> kinds;
    for (const lemo::v1::JobEvent& event : events_) {
      if (event.has_contract()) kinds.push_back(event.contract().kind());
    }
    return kinds;
  }
  void Leaves(const std::string& job) {
    EXPECT_TRUE(Ask(CancelRequested{job}).ok());
    AgentMessage message;
    *message.mutable_ended()->mutable_id() = Id(1, job);
    message.mutable_ended()->set_outcome(AttemptEnded::STOPPED);
    Say(1, message);
    ASSERT_EQ(State(job), Job::CANCELLED);
  }

  // An elastic job of 200 MiB that can go on with 80, on a device of 250.
  void RunElastic() {
    ConnectWithMemory(1, 250 * kMiB);
    Contracted(kJob, 200 * kMiB, true);
    Started(1, 1);
    Step(1, 200 * kMiB, 180 * kMiB, 80 * kMiB);
    ASSERT_EQ(State(), Job::RUNNING);
  }
};

TEST_F(AllotmentTest, ANeighbourStartsWhenTheCutIsKept) {
  RunElastic();
  Contracted(kOther, 100 * kMiB);
  EXPECT_EQ(State(kOther), Job::QUEUED);
  EXPECT_EQ(Stored(kOther).reason_code(), Job::DEVICES_BUSY);
  EXPECT_THAT(Stored(kOther).reason(), HasSubstr("jobs/1 makes room for it"));
  EXPECT_THAT(Budgets(), ElementsAre(150 * kMiB));
  EXPECT_EQ(Stored().allotment().memory_bytes(), 200 * kMiB);
  EXPECT_EQ(Stored().allotment().asked_bytes(), 150 * kMiB);
  EXPECT_EQ(Stored().allotment().for_job(), kOther);
  // A step of before, or one that has not kept to it yet, is no room.
  Step(2, 200 * kMiB, 140 * kMiB, 80 * kMiB);
  Step(3, 150 * kMiB, 150 * kMiB + 1, 80 * kMiB);
  EXPECT_EQ(State(kOther), Job::QUEUED);
  Step(4, 150 * kMiB, 150 * kMiB, 80 * kMiB);
  EXPECT_EQ(State(kOther), Job::STARTING);
  EXPECT_EQ(Stored().allotment().memory_bytes(), 150 * kMiB);
  EXPECT_EQ(Stored().allotment().asked_bytes(), 0);
  EXPECT_EQ(Stored().contract().memory_bytes(), 200 * kMiB);
  EXPECT_EQ(Stored().attempt(), 1);
  // And the way back.
  Leaves(kOther);
  EXPECT_THAT(Budgets(), ElementsAre(200 * kMiB));
  EXPECT_EQ(Stored().allotment().memory_bytes(), 200 * kMiB);
  EXPECT_THAT(Changes(), ElementsAre(Change::CUT, Change::WITHIN, Change::RAISED));
}

// Both ranks keep to a cut that is made for a neighbour of one of them.
TEST_F(AllotmentTest, OfAGangIsOfEachRank) {
  ConnectWithMemory(1, 250 * kMiB, {}, 2);
  Contracted(kJob, 200 * kMiB, true, 0, 0, /*ranks=*/2);
  Started(1, 1);
  Step(1, 200 * kMiB, 180 * kMiB, 80 * kMiB);
  ASSERT_THAT(Stored().nodes(0).devices(), ElementsAre(0, 1));
  Contracted(kOther, 100 * kMiB);
  EXPECT_THAT(Budgets(), ElementsAre(150 * kMiB));
  Contracted("jobs/3", 100 * kMiB);
  Step(2, 150 * kMiB, 140 * kMiB, 80 * kMiB);
  // The room is there beside either.
  EXPECT_EQ(State(kOther), Job::STARTING);
  EXPECT_EQ(State("jobs/3"), Job::STARTING);
  EXPECT_NE(Stored(kOther).nodes(0).devices(0), Stored("jobs/3").nodes(0).devices(0));
  // One neighbour leaves, the other stays: nothing comes back.
  Started(1, 1, kOther);
  Leaves(kOther);
  EXPECT_THAT(Budgets(), IsEmpty());
  Started(1, 1, "jobs/3");
  Leaves("jobs/3");
  EXPECT_THAT(Budgets(), ElementsAre(200 * kMiB));
}

TEST_F(AllotmentTest, IsNeverBelowWhatTheRunOrItsOwnerAllows) {
  ConnectWithMemory(1, 250 * kMiB);
  Contracted(kJob, 200 * kMiB, true, 120 * kMiB);
  Started(1, 1);
  Step(1, 200 * kMiB, 180 * kMiB, 80 * kMiB);
  Contracted(kOther, 131 * kMiB);
  EXPECT_THAT(Changes(), IsEmpty());
  EXPECT_EQ(State(kOther), Job::QUEUED);
  EXPECT_TRUE(Ask(CancelRequested{kOther}).ok());
  Contracted("jobs/3", 130 * kMiB);
  EXPECT_THAT(Budgets(), ElementsAre(120 * kMiB));
}

TEST_F(AllotmentTest, IsOnlyOfJobsThatAllowItAndHaveSaidWhatTheyNeed) {
  ConnectWithMemory(1, 250 * kMiB);
  Contracted(kJob, 200 * kMiB);
  Started(1, 1);
  Step(1, 200 * kMiB, 100 * kMiB, 50 * kMiB);
  Contracted(kOther, 100 * kMiB);
  EXPECT_THAT(Changes(), IsEmpty());
  Leaves(kJob);
  EXPECT_EQ(State(kOther), Job::STARTING);

  Contracted("jobs/3", 240 * kMiB, true);
  Contracted("jobs/4", 100 * kMiB);
  Leaves(kOther);
  ASSERT_EQ(State("jobs/3"), Job::STARTING);
  Started(1, 1, "jobs/3");
  EXPECT_THAT(Changes(), IsEmpty()) << "it has said nothing yet";
  Step(1, 240 * kMiB, 200 * kMiB, 50 * kMiB, "jobs/3");
  EXPECT_THAT(Changes(), ElementsAre(Change::CUT));
}

// Who waited goes: what was asked for it is kept first, and then given back.
TEST_F(AllotmentTest, IsGivenBackWhenWhoWaitedNoLongerDoes) {
  RunElastic();
  Contracted(kOther, 100 * kMiB);
  EXPECT_TRUE(Ask(CancelRequested{kOther}).ok());
  EXPECT_THAT(Budgets(), IsEmpty());
  Step(2, 150 * kMiB, 120 * kMiB, 80 * kMiB);
  EXPECT_THAT(Budgets(), ElementsAre(200 * kMiB));
  EXPECT_THAT(Changes(), ElementsAre(Change::CUT, Change::WITHIN, Change::RAISED));
}

// A step that was computed before a raise tells the number of the cut before it: it is no proof for
// a new cut to the same number.
TEST_F(AllotmentTest, IsNotCutAgainBeforeAStepHasToldOfTheRaise) {
  RunElastic();
  Contracted(kOther, 100 * kMiB);
  Step(2, 150 * kMiB, 120 * kMiB, 80 * kMiB);
  ASSERT_EQ(State(kOther), Job::STARTING);
  Leaves(kOther);
  EXPECT_THAT(Budgets(), ElementsAre(200 * kMiB));
  Contracted("jobs/3", 100 * kMiB);
  EXPECT_THAT(Budgets(), IsEmpty());
  Step(3, 150 * kMiB, 120 * kMiB, 80 * kMiB);
  EXPECT_THAT(Budgets(), IsEmpty());
  EXPECT_EQ(State("jobs/3"), Job::QUEUED);
  Step(4, 200 * kMiB, 120 * kMiB, 80 * kMiB);
  EXPECT_THAT(Budgets(), ElementsAre(150 * kMiB));
  Step(5, 150 * kMiB, 120 * kMiB, 80 * kMiB);
  EXPECT_EQ(State("jobs/3"), Job::STARTING);
}

// The run's own bound is below its contract: its steps tell that.
TEST_F(AllotmentTest, KnowsARunThatIsHeldToLessThanItsContract) {
  ConnectWithMemory(1, 250 * kMiB);
  Contracted(kJob, 200 * kMiB, true, 0, 140 * kMiB);
  Started(1, 1);
  Step(1, 140 * kMiB, 130 * kMiB, 80 * kMiB);
  Contracted(kOther, 100 * kMiB);
  EXPECT_THAT(Budgets(), ElementsAre(150 * kMiB));
  Step(2, 140 * kMiB, 130 * kMiB, 80 * kMiB);
  EXPECT_EQ(State(kOther), Job::STARTING);
}

TEST_F(AllotmentTest, IsToldAgainToAnAgentThatComesBack) {
  RunElastic();
  Contracted(kOther, 100 * kMiB);
  Do(AgentDisconnected{1});
  ConnectWithMemory(2, 250 * kMiB, {{kJob, 1}});
  EXPECT_THAT(Budgets(2), ElementsAre(150 * kMiB));
}

TEST_F(AllotmentTest, OutlivesTheCoordinator) {
  RunElastic();
  Contracted(kOther, 100 * kMiB);
  Core next{options_, &scheduler_};
  next.Recover({stored_.at(kJob), stored_.at(kOther)}, {}, now_);
  AgentConnected event;
  event.session = 7;
  event.hello.set_worker(kWorker);
  lemo::v1::Device& device = *event.hello.add_devices();
  device.set_kind(lemo::v1::Device::CPU);
  device.set_memory_bytes(250 * kMiB);
  *event.hello.add_attempts()->mutable_id() = Id(1);
  std::vector<int64_t> told;
  for (const Effect& effect : next.Step(event, now_).effects) {
    const auto* send = std::get_if<Send>(&effect);
    if (send != nullptr && send->message.has_budget()) {
      told.push_back(send->message.budget().bytes());
    }
  }
  EXPECT_THAT(told, ElementsAre(150 * kMiB));
  EXPECT_EQ(next.Find(kOther)->job.state(), Job::QUEUED);
}

// A new attempt has all of its contract; and a run that could not keep to a cut is not its owner's
// fault.
TEST_F(AllotmentTest, EndsWithTheAttempt) {
  RunElastic();
  Contracted(kOther, 100 * kMiB);
  AgentMessage message;
  AttemptEnded& ended = *message.mutable_ended();
  *ended.mutable_id() = Id(1);
  ended.set_outcome(AttemptEnded::FAILED);
  ended.set_last_sequence(1);
  ended.mutable_failure()->set_kind(Failure::OUT_OF_MEMORY);
  ended.mutable_failure()->set_message("memory.budget_bytes: 1 byte too few");
  Say(1, message);
  EXPECT_EQ(State(), Job::QUEUED);
  EXPECT_EQ(Stored().restarts(), 1);
  EXPECT_FALSE(Stored().has_allotment());
  EXPECT_EQ(State(kOther), Job::STARTING);
}

}  // namespace
}  // namespace lemo::coordinator
