// Attempts over several workers: placed whole, ended everywhere, over when nothing is left.
#include "tests/unit/core/harness.h"

namespace lemo::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr char kOther[] = "workers/b";

class Gangs : public CoreTest {
 protected:
  void ConnectSpanning(int64_t session, const std::string& worker, int devices,
                       bool knows_job = false) {
    AgentConnected event;
    event.session = session;
    event.hello.set_worker(worker);
    event.hello.set_host("host of " + worker);
    event.hello.mutable_endpoint()->set_address(worker + ":7420");
    for (int i = 0; i < devices; ++i) {
      lemo::v1::Device& device = *event.hello.add_devices();
      device.set_index(i);
      device.set_kind(lemo::v1::Device::CPU);
    }
    if (knows_job) {
      lemo::v1::AttemptReport& report = *event.hello.add_attempts();
      *report.mutable_id() = Id(1);
      report.set_running(true);
    }
    Do(event);
  }
  // Three ranks: two on a, which leads, and one on b.
  void Place() {
    ConnectSpanning(1, kWorker, 2);
    ConnectSpanning(2, kOther, 1);
    Queue(kJob, 3);
  }
  void RunGang() {
    Place();
    Started(1, 1);
    ASSERT_EQ(State(), Job::RUNNING);
  }
  // The signals that the last event sent.
  std::vector<AttemptSignal::Signal> Signals(int64_t session) const {
    std::vector<AttemptSignal::Signal> signals;
    for (const CoordinatorMessage& message : Sent(session)) {
      if (message.has_signal()) signals.push_back(message.signal().signal());
    }
    return signals;
  }
  int Forgotten(int64_t session) const {
    int count = 0;
    for (const CoordinatorMessage& message : Sent(session)) count += message.has_forgotten();
    return count;
  }
};

TEST_F(Gangs, EveryWorkerGetsItsPartAndTheToken) {
  Place();
  ASSERT_EQ(State(), Job::STARTING);
  ASSERT_THAT(Stored().nodes(), SizeIs(2));
  EXPECT_EQ(Stored().worker(), kWorker);
  EXPECT_EQ(Stored().nodes(0).worker(), kWorker);
  EXPECT_EQ(Stored().nodes(0).host(), "host of workers/a");
  EXPECT_EQ(Stored().reason(), "workers/a and 1 other fetch its files and start its 3 ranks");
  ASSERT_THAT(Sent(1), SizeIs(1));
  ASSERT_THAT(Sent(2), SizeIs(1));
  const lemo::v1::Assignment lead = Sent(1)[0].assign();
  const lemo::v1::Assignment other = Sent(2)[0].assign();
  EXPECT_THAT(lead.devices(), ElementsAre(0, 1));
  EXPECT_THAT(other.devices(), ElementsAre(0));
  for (const lemo::v1::Assignment& assignment : {lead, other}) {
    EXPECT_EQ(assignment.ranks(), 3);
    ASSERT_THAT(assignment.nodes(), SizeIs(2));
    EXPECT_EQ(assignment.nodes(0).worker(), kWorker);
    EXPECT_EQ(assignment.nodes(0).ranks(), 2);
    EXPECT_EQ(assignment.nodes(1).endpoint().address(), "workers/b:7420");
  }
  EXPECT_THAT(lead.gang_token(), SizeIs(64));
  EXPECT_EQ(lead.gang_token(), other.gang_token());
}

TEST_F(Gangs, ATokenIsOfOneAttemptAndOneSecret) {
  const auto token = [](const std::string& secret, const std::string& job) {
    scheduler::FifoScheduler scheduler;
    CoreOptions options;
    options.gang_secret = secret;
    Core core(options, &scheduler);
    const absl::Time now = absl::FromUnixSeconds(1'000'000);
    for (int worker = 1; worker <= 2; ++worker) {
      AgentConnected event;
      event.session = worker;
      event.hello.set_worker("workers/" + std::to_string(worker));
      event.hello.mutable_endpoint()->set_address("x:1");
      event.hello.add_devices()->set_kind(lemo::v1::Device::CPU);
      core.Step(event, now);
    }
    Submitted submitted;
    submitted.record.job.set_name(job);
    submitted.record.job.mutable_spec()->mutable_resources()->set_ranks(2);
    core.Step(submitted, now);
    for (const Effect& effect : core.Step(Validated{job, {}, 0}, now).effects) {
      const auto* send = std::get_if<Send>(&effect);
      if (send != nullptr && send->message.has_assign()) return send->message.assign().gang_token();
    }
    return std::string("none was assigned");
  };
  EXPECT_EQ(token("s", "jobs/1"), token("s", "jobs/1"));
  EXPECT_NE(token("s", "jobs/1"), token("s", "jobs/2"));
  EXPECT_NE(token("s", "jobs/1"), token("t", "jobs/1"));
}

TEST_F(Gangs, OneThatFitsOnAWorkerHasNoNodesToKnow) {
  ConnectSpanning(1, kWorker, 2);
  ConnectSpanning(2, kOther, 1);
  Queue(kJob, 2);
  ASSERT_THAT(Sent(1), SizeIs(1));
  EXPECT_THAT(Sent(1)[0].assign().nodes(), IsEmpty());
  EXPECT_THAT(Sent(1)[0].assign().gang_token(), IsEmpty());
  EXPECT_THAT(Sent(2), IsEmpty());
}

TEST_F(Gangs, OnlyTheLeadTellsOfTheRun) {
  Place();
  Started(2, 1);
  EXPECT_EQ(State(), Job::STARTING);
  Started(1, 1);
  EXPECT_EQ(State(), Job::RUNNING);
  EXPECT_EQ(Stored().reason(), "3 ranks run on 2 workers, led by workers/a");
  Steps(2, 1, 1, 3);
  EXPECT_EQ(Stored().progress().step(), 0);
  Steps(1, 1, 1, 2);
  EXPECT_EQ(Stored().progress().step(), 2);
}

TEST_F(Gangs, LogsAreTakenOfTheRanksThatAWorkerHas) {
  RunGang();
  const auto taken = [this](int64_t session, int rank) {
    AgentMessage message;
    *message.mutable_log()->mutable_id() = Id(1);
    message.mutable_log()->mutable_chunk()->set_rank(rank);
    Say(session, message);
    return Count<AppendLog>() == 1;
  };
  EXPECT_TRUE(taken(1, 0));
  EXPECT_TRUE(taken(1, 1));
  EXPECT_FALSE(taken(1, 2));
  EXPECT_TRUE(taken(2, 2));
  EXPECT_FALSE(taken(2, 1));
  EXPECT_FALSE(taken(2, 3));
}

TEST_F(Gangs, SucceedsByTheLeadsWordWhenNothingIsLeftElsewhere) {
  RunGang();
  Steps(1, 1, 1, 2);
  Result(1, 1, 3);
  Ended(1, 1, AttemptEnded::SUCCEEDED, 3);
  EXPECT_EQ(State(), Job::RUNNING);
  EXPECT_EQ(Stored().reason(), "ends: workers/a has nothing left of it; waits for workers/b");
  EXPECT_THAT(Signals(2), ElementsAre(AttemptSignal::KILL));
  EXPECT_EQ(Forgotten(1), 0);  // it repeats its word to a coordinator that comes after this one
  Ended(2, 1, AttemptEnded::STOPPED, 0);
  EXPECT_EQ(State(), Job::SUCCEEDED);
  EXPECT_EQ(Forgotten(1), 1);
  EXPECT_EQ(Forgotten(2), 1);
}

TEST_F(Gangs, AFailureElsewhereEndsAllAndIsTheCause) {
  RunGang();
  Ended(2, 1, AttemptEnded::FAILED, 0);
  EXPECT_EQ(State(), Job::RUNNING);
  EXPECT_THAT(Signals(1), ElementsAre(AttemptSignal::KILL));
  Ended(1, 1, AttemptEnded::STOPPED, 0);
  EXPECT_EQ(State(), Job::QUEUED);
  EXPECT_EQ(Stored().restarts(), 1);
  EXPECT_THAT(Stored().reason(), HasSubstr("workers/b: it broke"));
}

TEST_F(Gangs, ASuccessThatIsNotTheLeadsIsAFault) {
  RunGang();
  Steps(1, 1, 1, 2);
  Result(1, 1, 3);
  Ended(2, 1, AttemptEnded::SUCCEEDED, 0);
  Ended(1, 1, AttemptEnded::STOPPED, 3);
  EXPECT_EQ(State(), Job::QUEUED);
  EXPECT_THAT(Stored().reason(), HasSubstr("workers/b told of success, though it does not lead"));
}

TEST_F(Gangs, ALostWorkerEndsTheOthersAndTheDevicesStayTakenUntilThen) {
  RunGang();
  // Only the lead's heartbeats go on.
  PassWithHeartbeats(1, options_.lease + options_.fence_margin + absl::Seconds(2));
  EXPECT_EQ(State(), Job::RUNNING);
  EXPECT_THAT(Stored().reason(),
              HasSubstr("workers/b has nothing left of it; waits for workers/a"));
  Queue("jobs/2", 2);
  EXPECT_EQ(State("jobs/2"), Job::QUEUED);
  EXPECT_EQ(Stored("jobs/2").reason_code(), Job::DEVICES_BUSY);
  Ended(1, 1, AttemptEnded::STOPPED, 0);
  EXPECT_EQ(State(), Job::QUEUED);
  EXPECT_THAT(Stored().reason(), HasSubstr("workers/b was lost"));
  EXPECT_EQ(State("jobs/2"), Job::STARTING);
}

TEST_F(Gangs, WhoeverIsTakenForLostIsWaitedForWhenItIsBack) {
  RunGang();
  PassWithHeartbeats(1, options_.lease + options_.fence_margin + absl::Seconds(2));
  ConnectSpanning(3, kOther, 1, /*knows_job=*/true);
  EXPECT_THAT(Signals(3), ElementsAre(AttemptSignal::KILL));
  Ended(1, 1, AttemptEnded::STOPPED, 0);
  EXPECT_EQ(State(), Job::RUNNING);
  Ended(3, 1, AttemptEnded::FAILED, 0);
  EXPECT_EQ(State(), Job::QUEUED);
}

TEST_F(Gangs, AnAgentThatForgotItsPartEndsTheGang) {
  RunGang();
  ConnectSpanning(3, kOther, 1);
  EXPECT_THAT(Signals(1), ElementsAre(AttemptSignal::KILL));
  Ended(1, 1, AttemptEnded::STOPPED, 0);
  EXPECT_THAT(Stored().reason(), HasSubstr("workers/b no longer knows of the run"));
}

TEST_F(Gangs, APartThatNeverArrivedIsSentAgain) {
  Place();
  ConnectSpanning(3, kOther, 1);
  bool assigned = false;
  for (const CoordinatorMessage& message : Sent(3)) {
    assigned |= message.has_assign() && message.assign().devices_size() == 1;
  }
  EXPECT_TRUE(assigned);
  EXPECT_THAT(Signals(1), IsEmpty());
}

TEST_F(Gangs, APauseIsTheLeadsAndACancelEverybodys) {
  RunGang();
  ASSERT_TRUE(Ask(PauseRequested{kJob}).ok());
  EXPECT_THAT(Signals(1), ElementsAre(AttemptSignal::CHECKPOINT_AND_STOP));
  EXPECT_THAT(Signals(2), IsEmpty());
  ASSERT_TRUE(Ask(CancelRequested{kJob}).ok());
  EXPECT_THAT(Signals(1), ElementsAre(AttemptSignal::KILL));
  EXPECT_THAT(Signals(2), ElementsAre(AttemptSignal::KILL));
  Ended(2, 1, AttemptEnded::STOPPED, 0);
  Ended(1, 1, AttemptEnded::STOPPED, 0);
  EXPECT_EQ(State(), Job::CANCELLED);
}

TEST_F(Gangs, AnotherCoordinatorHearsTheEndAgain) {
  RunGang();
  Ended(1, 1, AttemptEnded::FAILED, 0);
  Core next(options_, &scheduler_);
  next.Recover({stored_.at(kJob)}, {}, now_);
  core_ = std::move(next);
  ConnectSpanning(11, kWorker, 2, true);
  ConnectSpanning(12, kOther, 1, true);
  EXPECT_EQ(State(), Job::RUNNING);
  Ended(11, 1, AttemptEnded::FAILED, 0);
  EXPECT_THAT(Signals(12), ElementsAre(AttemptSignal::KILL));
  Ended(12, 1, AttemptEnded::STOPPED, 0);
  EXPECT_EQ(State(), Job::QUEUED);
  EXPECT_EQ(Stored().restarts(), 1);
}

TEST_F(Gangs, GoesOnWithFewerRanksWhenANodeIsGone) {
  ConnectSpanning(1, kWorker, 2);
  ConnectSpanning(2, kOther, 2);
  Submitted event;
  event.record.job.set_name(kJob);
  event.record.job.mutable_spec()->mutable_resources()->set_ranks(4);
  event.record.job.mutable_spec()->mutable_resources()->set_min_ranks(2);
  ASSERT_TRUE(Ask(event).ok());
  Do(Validated{kJob, std::nullopt, 0});
  Started(1, 1);
  Do(AgentDisconnected{2});
  Ended(1, 1, AttemptEnded::FAILED, 0);  // its ranks lost their peers
  // The other's lease runs: it may come back, and until it is lost something may run there.
  PassWithHeartbeats(1, absl::Seconds(5));
  EXPECT_EQ(State(), Job::RUNNING);
  PassWithHeartbeats(1, options_.lease + options_.fence_margin);
  ASSERT_EQ(State(), Job::STARTING);
  EXPECT_EQ(Stored().attempt(), 2);
  ASSERT_THAT(Stored().nodes(), SizeIs(1));
  EXPECT_THAT(Stored().nodes(0).devices(), ElementsAre(0, 1));
}

TEST_F(Gangs, AJobOfAnOlderCoordinatorIsKnownToItsWorker) {
  Run();
  JobRecord record = stored_.at(kJob);
  record.job.clear_nodes();
  Core next(options_, &scheduler_);
  next.Recover({record}, {}, now_);
  core_ = std::move(next);
  Connect(11, {{kJob, 1}});
  Steps(11, 1, 1, 1);
  EXPECT_EQ(Stored().progress().step(), 1);
}

}  // namespace
}  // namespace lemo::coordinator
