// Processes that die: the job ends with the adapter of an undisturbed run all the same.
#include <gtest/gtest.h>

#include <csignal>

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
  }

  Service service_;
  lemo::v1::JobSpec spec_;
  std::string name_;
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

TEST_F(Faults, AnAgentIsKilledAndAnotherTakesTheJob) {
  service_.StartAgent("b");
  service_.KillAgent("a");
  ExpectTheUndisturbedAdapter(/*attempts=*/2);
}

}  // namespace
}  // namespace lemo::coordinator
