// That the checks of histories find what they are for.
#include "tests/fault/service/history.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

namespace lemo::coordinator {
namespace {

using lemo::v1::Job;
using lemo::v1::JobEvent;
using testing::HasSubstr;

const std::map<int, double> kLosses = {{1, 5.0}, {2, 4.0}, {3, 3.5}};

// Two attempts: the first makes two steps and a checkpoint at step 1, the second goes on from
// there.
class HistoryTest : public testing::Test {
 protected:
  HistoryTest() {
    Enter(Job::VALIDATING);
    Enter(Job::QUEUED);
    attempt_ = 1;
    Enter(Job::STARTING);
    Enter(Job::RUNNING);
    Step(1, 5.0);
    Checkpoint(1, "interval");
    Step(2, 4.0);
    Enter(Job::QUEUED);
    attempt_ = 2;
    Enter(Job::STARTING);
    Enter(Job::RUNNING);
    Checkpoint(1, "resumed");
    Step(2, 4.0);
    Step(3, 3.5);
    Enter(Job::SUCCEEDED);
  }

  JobEvent& Add() {
    JobEvent& event = events_.emplace_back();
    event.set_sequence(static_cast<int64_t>(events_.size()));
    event.set_attempt(attempt_);
    return event;
  }
  void Enter(Job::State state) {
    JobEvent& event = Add();
    event.mutable_state()->set_from(state_);
    event.mutable_state()->set_to(state);
    state_ = state;
    said_ = 0;
  }
  lemo::v1::RunEvent* Say() {
    lemo::v1::RunEvent* run = Add().mutable_run();
    run->set_sequence(++said_);
    return run;
  }
  void Step(int step, double loss) {
    lemo::v1::StepEvent& event = *Say()->mutable_step();
    event.set_step(step);
    event.set_loss(loss);
  }
  void Checkpoint(int step, const char* reason) {
    lemo::v1::CheckpointEvent& event = *Say()->mutable_checkpoint();
    event.set_step(step);
    event.set_reason(reason);
  }
  // The first fault after the change; empty when there is none.
  std::string After(const std::function<void(std::vector<JobEvent>*)>& change) const {
    std::vector<JobEvent> events = events_;
    change(&events);
    const std::vector<std::string> faults = FaultsOf(events, kLosses);
    return faults.empty() ? "" : faults.front();
  }

  std::vector<JobEvent> events_;
  int attempt_ = 0;
  Job::State state_ = Job::STATE_UNSPECIFIED;
  int64_t said_ = 0;
};

TEST_F(HistoryTest, AGoodOneHasNoFaults) {
  EXPECT_EQ(After([](auto*) {}), "");
}

TEST_F(HistoryTest, EventsThatAreLostDoubledOrSwappedAreFound) {
  for (size_t i = 0; i < events_.size(); ++i) {
    EXPECT_NE(After([i](auto* events) { events->erase(events->begin() + i); }), "") << i;
    EXPECT_NE(After([i](auto* events) { events->insert(events->begin() + i, (*events)[i]); }), "")
        << i;
    if (i == 0) continue;
    EXPECT_NE(After([i](auto* events) { std::swap((*events)[i - 1], (*events)[i]); }), "") << i;
  }
}

TEST_F(HistoryTest, LossesAreTheVeryOnes) {
  EXPECT_THAT(
      After([](auto* events) { (*events)[12].mutable_run()->mutable_step()->set_loss(3.5000001); }),
      HasSubstr("undisturbed loss"));
}

TEST_F(HistoryTest, StepsFollowTheCheckpoint) {
  EXPECT_THAT(
      After([](auto* events) { (*events)[10].mutable_run()->mutable_checkpoint()->set_step(0); }),
      HasSubstr("the next step is 1"));
}

TEST_F(HistoryTest, WhatTheRanksSaidHasNoGap) {
  EXPECT_THAT(After([](auto* events) { (*events)[12].mutable_run()->set_sequence(4); }),
              HasSubstr("of its attempt it is number 3"));
}

TEST_F(HistoryTest, EndsWithSuccess) {
  EXPECT_THAT(After([](auto* events) { events->back().mutable_state()->set_to(Job::FAILED); }),
              HasSubstr("ends as FAILED"));
}

}  // namespace
}  // namespace lemo::coordinator
