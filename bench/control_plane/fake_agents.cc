#include "bench/control_plane/fake_agents.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/control_plane/filled_store.h"
#include "bench/control_plane/service.h"
#include "common/status_macros.h"

namespace lemo::bench {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(30);

}  // namespace

struct FakeAgents::Agent {
  std::unique_ptr<lemo::v1::WorkerService::Stub> stub;
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReaderWriter<lemo::v1::AgentMessage, lemo::v1::CoordinatorMessage>>
      stream;
  absl::Duration heartbeat = absl::Seconds(1);
  absl::Time last_beat = absl::Now();
  int64_t beats = 0;
  std::thread reader;
};

FakeAgents::FakeAgents(const std::string& address, int agents, int devices) {
  for (int i = 0; i < agents; ++i) {
    Agent* agent = agents_.emplace_back(std::make_unique<Agent>()).get();
    agent->stub = lemo::v1::WorkerService::NewStub(Dial(address));
    agent->stream = agent->stub->Connect(&agent->context);
    lemo::v1::AgentMessage message;
    lemo::v1::Hello& hello = *message.mutable_hello();
    hello.set_worker(absl::StrCat("workers/bench-", i));
    hello.set_host("bench");
    hello.add_model_paths(kFakeModel);
    for (int d = 0; d < devices; ++d) {
      lemo::v1::Device& device = *hello.add_devices();
      device.set_index(d);
      device.set_kind(lemo::v1::Device::CPU);
      device.set_memory_bytes(int64_t{1} << 40);
    }
    agent->stream->Write(message);
    agent->reader = std::thread([this, agent] { Read(agent); });
  }
}

FakeAgents::~FakeAgents() {
  stopping_ = true;
  for (const auto& agent : agents_) agent->context.TryCancel();
  for (const auto& agent : agents_) {
    agent->reader.join();
    agent->stream->Finish();
  }
}

void FakeAgents::Read(Agent* agent) {
  lemo::v1::CoordinatorMessage message;
  while (agent->stream->Read(&message)) {
    if (!message.has_assign()) continue;
    const std::lock_guard lock(mutex_);
    attempts_.push_back({agent, message.assign().id()});
  }
  const std::lock_guard lock(mutex_);
  if (!stopping_) broken_ = absl::UnavailableError("the coordinator closed an agent's stream");
}

absl::StatusOr<std::vector<std::string>> FakeAgents::TakeJobs(int count) {
  const absl::Time deadline = absl::Now() + kPatience;
  for (;;) {
    {
      const std::lock_guard lock(mutex_);
      if (!broken_.ok()) return broken_;
      if (static_cast<int>(attempts_.size()) >= count) break;
    }
    if (absl::Now() > deadline) return absl::DeadlineExceededError("jobs were not assigned");
    absl::SleepFor(absl::Milliseconds(5));
  }
  std::vector<std::string> jobs;
  for (const Attempt& attempt : attempts_) {
    lemo::v1::AgentMessage message;
    *message.mutable_started()->mutable_id() = attempt.id;
    attempt.agent->stream->Write(message);
    jobs.push_back(attempt.id.job());
  }
  return jobs;
}

absl::StatusOr<int64_t> FakeAgents::TellSteps(double per_second, absl::Duration duration) {
  const absl::Time begin = absl::Now();
  int64_t sent = 0;
  for (absl::Time due = begin; due < begin + duration;
       due = begin + absl::Seconds(static_cast<double>(sent) / per_second)) {
    absl::SleepFor(due - absl::Now());
    for (const auto& agent : agents_) {
      if (absl::Now() - agent->last_beat < agent->heartbeat) continue;
      agent->last_beat = absl::Now();
      lemo::v1::AgentMessage beat;
      beat.mutable_heartbeat()->set_number(++agent->beats);
      agent->stream->Write(beat);
    }
    Attempt& attempt = attempts_[static_cast<size_t>(sent) % attempts_.size()];
    lemo::v1::AgentMessage message;
    lemo::v1::AttemptEvents& events = *message.mutable_events();
    *events.mutable_id() = attempt.id;
    events.set_first_sequence(++attempt.sequence);
    lemo::v1::RunEvent& event = *events.add_events();
    event.set_sequence(attempt.sequence);
    lemo::v1::StepEvent& step = *event.mutable_step();
    step.set_step(static_cast<int>(attempt.sequence));
    step.set_steps(1'000'000);
    step.set_loss(2.5);
    step.set_learning_rate(1e-4);
    step.set_grad_norm(1);
    step.set_tokens(8192);
    step.set_seconds(0.1);
    step.set_tokens_per_second(81'920);
    step.set_peak_bytes(1 << 30);
    event.set_unix_seconds(absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()));
    attempt.agent->stream->Write(message);
    ++sent;
  }
  const std::lock_guard lock(mutex_);
  if (!broken_.ok()) return broken_;
  return sent;
}

}  // namespace lemo::bench
