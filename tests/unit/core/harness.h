// A core with a clock in hand, and short ways to say what agents and people do.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "coordinator/core/core.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "scheduler/scheduler.h"

namespace lemo::coordinator {

using lemo::v1::AgentMessage;
using lemo::v1::AttemptEnded;
using lemo::v1::AttemptSignal;
using lemo::v1::CoordinatorMessage;
using lemo::v1::Failure;
using lemo::v1::Job;

inline constexpr char kJob[] = "jobs/1";
inline constexpr char kWorker[] = "workers/a";

class CoreTest : public ::testing::Test {
 protected:
  Core::Outcome Do(const Event& event) {
    Core::Outcome outcome = core_.Step(event, now_);
    last_ = outcome.effects;
    for (const Effect& effect : outcome.effects) {
      if (const auto* persist = std::get_if<Persist>(&effect)) {
        stored_[persist->record.job.name()] = persist->record;
        for (const lemo::v1::JobEvent& event : persist->events) events_.push_back(event);
      }
    }
    return outcome;
  }
  absl::Status Ask(const Event& event) { return Do(event).status; }

  // Lets time pass as a runtime does: a tick whenever one is due.
  void Pass(absl::Duration duration) {
    const absl::Time end = now_ + duration;
    std::vector<Effect> all;
    while (now_ < end) {
      now_ = std::min(end, std::max(core_.NextWake(), now_ + absl::Milliseconds(1)));
      Do(Tick{});
      all.insert(all.end(), last_.begin(), last_.end());
    }
    last_ = std::move(all);
  }
  void PassWithHeartbeats(int64_t session, absl::Duration duration) {
    for (const absl::Time end = now_ + duration; now_ < end;) {
      Pass(absl::Seconds(1));
      Beat(session);
    }
  }

  void Submit(const std::string& job = kJob, int ranks = 1) {
    Submitted event;
    event.record.job.set_name(job);
    event.record.job.mutable_spec()->mutable_resources()->set_ranks(ranks);
    ASSERT_TRUE(Ask(event).ok());
  }
  void Queue(const std::string& job = kJob, int ranks = 1) {
    Submit(job, ranks);
    Do(Validated{job, std::nullopt, 0});
  }
  void Connect(int64_t session, std::vector<std::pair<std::string, int>> attempts = {},
               const std::string& worker = kWorker, int devices = 1) {
    AgentConnected event;
    event.session = session;
    event.hello.set_worker(worker);
    for (int i = 0; i < devices; ++i) {
      lemo::v1::Device& device = *event.hello.add_devices();
      device.set_index(i);
      device.set_kind(lemo::v1::Device::CPU);
    }
    for (const auto& [job, attempt] : attempts) {
      lemo::v1::AttemptReport& report = *event.hello.add_attempts();
      *report.mutable_id() = Id(attempt, job);
      report.set_running(true);
    }
    Do(event);
  }
  void Say(int64_t session, AgentMessage message) { Do(AgentSaid{session, std::move(message)}); }
  void Beat(int64_t session) {
    AgentMessage message;
    message.mutable_heartbeat()->set_number(1);
    Say(session, message);
  }
  void Started(int64_t session, int attempt, const std::string& job = kJob) {
    AgentMessage message;
    *message.mutable_started()->mutable_id() = Id(attempt, job);
    Say(session, message);
  }
  // Events `first` to `last` of the attempt: steps of these numbers.
  void Steps(int64_t session, int attempt, int first, int last) {
    AgentMessage message;
    *message.mutable_events()->mutable_id() = Id(attempt);
    message.mutable_events()->set_first_sequence(first);
    for (int i = first; i <= last; ++i)
      message.mutable_events()->add_events()->mutable_step()->set_step(i);
    Say(session, message);
  }
  void Result(int64_t session, int attempt, int sequence) {
    AgentMessage message;
    *message.mutable_events()->mutable_id() = Id(attempt);
    message.mutable_events()->set_first_sequence(sequence);
    message.mutable_events()->add_events()->mutable_result()->set_steps(3);
    Say(session, message);
  }
  void Ended(int64_t session, int attempt, AttemptEnded::Outcome outcome, int last_sequence,
             Failure::Kind kind = Failure::SYSTEM_ERROR) {
    AgentMessage message;
    AttemptEnded& ended = *message.mutable_ended();
    *ended.mutable_id() = Id(attempt);
    ended.set_outcome(outcome);
    ended.set_last_sequence(last_sequence);
    if (outcome == AttemptEnded::FAILED) {
      ended.mutable_failure()->set_kind(kind);
      ended.mutable_failure()->set_message("it broke");
    }
    if (outcome == AttemptEnded::SUCCEEDED) ended.add_artifacts()->set_path("adapter");
    Say(session, message);
  }
  // A job that runs as attempt 1 on the worker of session 1.
  void Run() {
    Connect(1);
    Queue();
    Started(1, 1);
    ASSERT_EQ(State(), Job::RUNNING);
  }

  static lemo::v1::AttemptId Id(int attempt, const std::string& job = kJob) {
    lemo::v1::AttemptId id;
    id.set_job(job);
    id.set_attempt(attempt);
    return id;
  }
  // As stored last, ended or not.
  const Job& Stored(const std::string& job = kJob) { return stored_[job].job; }
  Job::State State(const std::string& job = kJob) { return Stored(job).state(); }
  // Messages that the last event sent.
  std::vector<CoordinatorMessage> Sent(int64_t session) const {
    std::vector<CoordinatorMessage> sent;
    for (const Effect& effect : last_) {
      const auto* send = std::get_if<Send>(&effect);
      if (send != nullptr && send->session == session) sent.push_back(send->message);
    }
    return sent;
  }
  template <typename Kind>
  int Count() const {
    return static_cast<int>(std::count_if(last_.begin(), last_.end(), [](const Effect& effect) {
      return std::holds_alternative<Kind>(effect);
    }));
  }

  scheduler::FifoScheduler scheduler_;
  CoreOptions options_;
  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
  Core core_{options_, &scheduler_};
  std::vector<Effect> last_;
  std::map<std::string, JobRecord> stored_;
  std::vector<lemo::v1::JobEvent> events_;
};

}  // namespace lemo::coordinator
