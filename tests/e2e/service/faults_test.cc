// Processes that die: the job ends with the adapter of an undisturbed run all the same.
#include <gtest/gtest.h>

#include <csignal>
#include <numeric>

#include "tests/e2e/service/service_fixture.h"

namespace lemo::coordinator {
namespace {

using lemo::v1::Job;

constexpr const char* kAdapter = "adapter/adapter_model.safetensors";

class Faults : public testing::Test {
 protected:
  // Submits a job of some steps with checkpoints and waits for its third.
  void SetUp() override {
    service_.PutInputs();
    service_.StartAgent("a");
    spec_ = service_.Spec();
    spec_.mutable_run()->mutable_train()->set_steps(40);
    spec_.mutable_run()->mutable_checkpoint()->set_every_steps(5);
    spec_.mutable_restart()->set_backoff_seconds(0.1);
    name_ = service_.Submit(spec_).name();
    service_.Watch(name_, [](const auto& event) { return event.run().step().step() == 12; });
  }

  void ExpectTheUndisturbedAdapter(int attempts) {
    const Job job = service_.Finish(name_);
    ASSERT_EQ(job.state(), Job::SUCCEEDED) << job.ShortDebugString();
    EXPECT_EQ(job.attempt(), attempts);
    EXPECT_EQ(service_.DownloadedSha256(name_, kAdapter), service_.UndisturbedSha256(spec_));
    // Nothing of a checkpoint is kept for a job that has ended.
    EXPECT_FALSE(service_.Get(name_).has_checkpoint());
    events_ = service_.Watch(name_, [](const auto&) { return false; });
  }

  int FirstStepOfAttempt(int attempt) const {
    for (const auto& event : events_) {
      if (event.attempt() == attempt && event.run().has_step()) return event.run().step().step();
    }
    return 0;
  }

  Service service_;
  lemo::v1::JobSpec spec_;
  std::string name_;
  std::vector<lemo::v1::JobEvent> events_;  // of the whole job
};

TEST_F(Faults, TheCoordinatorIsKilledAndTheRunGoesOn) {
  service_.KillCoordinator();
  service_.StartCoordinator();
  ExpectTheUndisturbedAdapter(/*attempts=*/1);
}

TEST_F(Faults, AnAgentIsKilledAndComesBack) {
  service_.KillAgent("a");
  service_.StartAgent("a");
  ExpectTheUndisturbedAdapter(/*attempts=*/2);
}

TEST_F(Faults, AnAgentIsKilledAndAnotherGoesOnFromItsCheckpoint) {
  // The coordinator has a checkpoint soon after the run made it.
  service_.Watch(name_, [this](const auto&) { return service_.Get(name_).has_checkpoint(); });
  const int step = service_.Get(name_).checkpoint().step();
  ASSERT_GE(step, 5);
  service_.StartAgent("b");
  service_.KillAgent("a");
  ExpectTheUndisturbedAdapter(/*attempts=*/2);
  EXPECT_GE(FirstStepOfAttempt(2), step + 1);
}

TEST_F(Faults, ADrainedWorkersJobLosesNoStep) {
  const std::string drained = service_.Get(name_).worker();
  service_.StartAgent("b");
  lemo::v1::DrainWorkerRequest request;
  request.set_name(drained);
  lemo::v1::Worker worker;
  ASSERT_TRUE(service_.cluster().DrainWorker(Patiently().get(), request, &worker).ok());
  ExpectTheUndisturbedAdapter(/*attempts=*/2);
  EXPECT_NE(service_.Get(name_).worker(), drained);
  std::vector<int> steps;
  for (const auto& event : events_) {
    if (event.run().has_step()) steps.push_back(event.run().step().step());
  }
  std::vector<int> each(40);
  std::iota(each.begin(), each.end(), 1);
  EXPECT_EQ(steps, each);
}

}  // namespace
}  // namespace lemo::coordinator
