#include "tests/sim/core/agent.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace lemo::coordinator::sim {

using lemo::v1::AgentMessage;
using lemo::v1::AttemptEnded;
using lemo::v1::AttemptSignal;
using lemo::v1::CoordinatorMessage;
using lemo::v1::Failure;
using lemo::v1::RunEvent;

namespace {
constexpr Ms kLongestKill = 4000;  // until the last rank is gone
}  // namespace

Agent::Agent(World* world, std::string name, std::vector<lemo::v1::Device> devices, bool reachable)
    : world_(world), name_(std::move(name)), devices_(std::move(devices)), reachable_(reachable) {}

void Agent::After(Ms delay, std::function<void()> what) {
  world_->loop().After(delay, [this, life = life_, what = std::move(what)] {
    if (life == life_ && world_->fault().empty()) what();
  });
}

void Agent::Begin() {
  up_ = true;
  leaving_ = false;
  renewed_ = -1'000'000;
  // Of a former life: the ranks have gone with it.
  for (auto& [key, attempt] : attempts_) {
    if (!attempt.over) End(attempt, AttemptEnded::FAILED);
  }
  Dial();
}

void Agent::Dial() {
  if (world_->loop().now() >= cut_until_) link_ = world_->Dial(this);
  if (link_ == nullptr) {
    After(world_->chance().Between(100, 2000), [this] { Dial(); });
    return;
  }
  welcomed_ = false;
  hello_sent_ = world_->loop().now();
  beats_sent_.clear();
  AgentMessage message;
  lemo::v1::Hello& hello = *message.mutable_hello();
  hello.set_worker(name_);
  for (const lemo::v1::Device& device : devices_) *hello.add_devices() = device;
  if (reachable_) hello.mutable_endpoint()->set_address(name_ + ":1");
  for (const auto& [key, attempt] : attempts_) {
    if (attempt.discard) continue;
    lemo::v1::AttemptReport& report = *hello.add_attempts();
    *report.mutable_id() = attempt.id;
    report.set_running(!attempt.over);
  }
  world_->SendToCoordinator(link_, std::move(message));
  After(absl::ToInt64Milliseconds(world_->options().heartbeat), [this, link = link_] {
    if (link == link_) Beat();
  });
}

void Agent::Beat() {
  const Ms now = world_->loop().now();
  if (now - std::max(renewed_, hello_sent_) > absl::ToInt64Milliseconds(world_->options().lease)) {
    BreakLink();  // nobody answers: dial anew
    return;
  }
  if (welcomed_) {
    AgentMessage message;
    message.mutable_heartbeat()->set_number(++beat_);
    beats_sent_[beat_] = now;
    Say(std::move(message));
    for (const auto& [key, attempt] : attempts_) {
      if (attempt.discard) continue;
      SendEvents(attempt, attempt.acknowledged + 1);
      if (attempt.over) SendEnd(attempt);
    }
  }
  After(absl::ToInt64Milliseconds(world_->options().heartbeat), [this, link = link_] {
    if (link == link_) Beat();
  });
}

bool Agent::HasLease() const {
  return world_->loop().now() - renewed_ <
         absl::ToInt64Milliseconds(world_->options().lease) * 2 / 3;
}

void Agent::CheckLease() {
  if (HasLease()) return;
  for (auto& [key, attempt] : attempts_) {
    if (attempt.over) continue;
    world_->Trace(absl::StrCat(name_, " has no lease: ends ", attempt.id.job()));
    const bool slow = world_->chance().Happens(500);
    StopRanks(key, slow ? kLongestKill : world_->chance().Between(0, kLongestKill),
              AttemptEnded::FAILED);
  }
}

void Agent::Say(AgentMessage message) {
  if (link_ != nullptr && welcomed_) world_->SendToCoordinator(link_, std::move(message));
}

void Agent::OnBroken(const std::shared_ptr<Link>& link) {
  if (link != link_ || !up_) return;
  link_ = nullptr;
  welcomed_ = false;
  After(world_->chance().Between(10, 1500), [this] {
    if (link_ == nullptr) Dial();
  });
}

void Agent::BreakLink() {
  if (link_ != nullptr) world_->BreakLink(this, link_);
}

void Agent::Stall(Ms until) {
  if (link_ != nullptr) link_->stalled_until = until;
}

void Agent::CutOff(Ms until) {
  cut_until_ = until;
  BreakLink();
}

void Agent::OnMessage(const std::shared_ptr<Link>& link, const CoordinatorMessage& message) {
  if (link != link_ || !up_) return;
  switch (message.message_case()) {
    case CoordinatorMessage::kWelcome:
      OnWelcome(message.welcome());
      break;
    case CoordinatorMessage::kLease: {
      auto sent = beats_sent_.find(message.lease().number());
      if (sent == beats_sent_.end()) break;
      renewed_ = std::max(renewed_, sent->second);
      beats_sent_.erase(beats_sent_.begin(), std::next(sent));
      After(absl::ToInt64Milliseconds(world_->options().lease) * 2 / 3 + 1,
            [this] { CheckLease(); });
      break;
    }
    case CoordinatorMessage::kAssign:
      OnAssign(message.assign());
      break;
    case CoordinatorMessage::kSignal: {
      const Key key = {message.signal().id().job(), message.signal().id().attempt()};
      auto found = attempts_.find(key);
      if (found == attempts_.end() || found->second.over) break;
      const bool kill = message.signal().signal() == AttemptSignal::KILL;
      StopRanks(key, world_->chance().Between(0, kill ? kLongestKill : 4000),
                AttemptEnded::STOPPED);
      break;
    }
    case CoordinatorMessage::kAcknowledged: {
      const lemo::v1::EventsAcknowledged& known = message.acknowledged();
      auto found = attempts_.find({known.id().job(), known.id().attempt()});
      if (found == attempts_.end()) break;
      found->second.acknowledged = std::max(found->second.acknowledged, known.through_sequence());
      break;
    }
    case CoordinatorMessage::kBudget: {
      auto found = attempts_.find({message.budget().id().job(), message.budget().id().attempt()});
      if (found == attempts_.end() || !found->second.alive) break;
      found->second.budget = message.budget().bytes();
      break;
    }
    case CoordinatorMessage::kForgotten: {
      auto found =
          attempts_.find({message.forgotten().id().job(), message.forgotten().id().attempt()});
      if (found != attempts_.end() && found->second.over) attempts_.erase(found);
      MaybeGo();
      break;
    }
    case CoordinatorMessage::MESSAGE_NOT_SET:
      world_->Break("an empty message to an agent");
  }
}

void Agent::OnWelcome(const lemo::v1::Welcome& welcome) {
  if (welcomed_) world_->Break("a second welcome on one stream");
  welcomed_ = true;
  renewed_ = std::max(renewed_, hello_sent_);
  After(std::max<Ms>(0, renewed_ - world_->loop().now() +
                            absl::ToInt64Milliseconds(world_->options().lease) * 2 / 3 + 1),
        [this] { CheckLease(); });
  if (leaving_) {
    AgentMessage message;
    message.mutable_drain();
    Say(std::move(message));
  }
  std::set<Key> current;
  for (const lemo::v1::EventsAcknowledged& known : welcome.attempts()) {
    const Key key = {known.id().job(), known.id().attempt()};
    current.insert(key);
    auto found = attempts_.find(key);
    if (found == attempts_.end()) {
      world_->Break("a welcome names an attempt that the agent did not");
      return;
    }
    Attempt& attempt = found->second;
    attempt.acknowledged = known.through_sequence();
    if (attempt.over && world_->chance().Happens(200)) SendEnd(attempt);  // too early
    // Sometimes what the coordinator has already, once more.
    int64_t first = known.through_sequence() + 1;
    if (world_->chance().Happens(200)) first = world_->chance().Between(1, first);
    if (attempt.alive && world_->chance().Happens(800)) {
      AgentMessage message;
      *message.mutable_started()->mutable_id() = attempt.id;
      Say(std::move(message));
    }
    SendEvents(attempt, first);
    if (attempt.over) SendEnd(attempt);
  }
  for (auto next = attempts_.begin(); next != attempts_.end();) {
    auto entry = next++;
    if (current.count(entry->first) > 0) continue;
    if (entry->second.over) {
      attempts_.erase(entry);
    } else {
      entry->second.discard = true;
      StopRanks(entry->first, world_->chance().Between(0, kLongestKill), AttemptEnded::STOPPED);
    }
  }
  MaybeGo();
}

void Agent::SendEvents(const Attempt& attempt, int64_t first) {
  AgentMessage message;
  *message.mutable_events()->mutable_id() = attempt.id;
  message.mutable_events()->set_first_sequence(first);
  for (size_t i = static_cast<size_t>(first) - 1; i < attempt.events.size(); ++i) {
    *message.mutable_events()->add_events() = attempt.events[i];
  }
  if (message.events().events_size() > 0) Say(std::move(message));
}

void Agent::SendEnd(const Attempt& attempt) {
  AgentMessage message;
  *message.mutable_ended() = attempt.end;
  Say(std::move(message));
}

void Agent::OnAssign(const lemo::v1::Assignment& assignment) {
  const Key key = {assignment.id().job(), assignment.id().attempt()};
  if (attempts_.count(key) > 0) return;
  Attempt& attempt = attempts_[key];
  attempt.id = assignment.id();
  attempt.devices.assign(assignment.devices().begin(), assignment.devices().end());
  attempt.budget = assignment.contract_bytes();
  int ranks = assignment.devices_size();
  if (assignment.nodes_size() > 0) {
    ranks = 0;
    for (const lemo::v1::AssignedNode& node : assignment.nodes()) {
      attempt.workers.push_back(node.worker());
      ranks += node.ranks();
      if (node.worker() == name_ && node.ranks() != assignment.devices_size()) {
        world_->Break(absl::StrCat(key.first, " has other devices than ranks on ", name_));
      }
    }
    if (assignment.gang_token().empty()) world_->Break("a gang has no token");
  }
  if (assignment.ranks() != ranks) {
    world_->Break(absl::StrCat(key.first, " was placed with another number of ranks"));
  }
  if (!HasLease()) {
    End(attempt, AttemptEnded::FAILED);
    return;
  }
  After(world_->chance().Between(20, 1500), [this, key] { StartRanks(key); });
}

void Agent::StartRanks(const Key& key) {
  auto found = attempts_.find(key);
  if (found == attempts_.end() || found->second.over || found->second.stopping) return;
  Attempt& attempt = found->second;
  attempt.ready = true;
  if (!Leads(attempt)) return;
  for (const std::string& worker : attempt.workers) {
    if (world_->FindAgent(worker)->Ready(key.first, key.second)) continue;
    After(world_->chance().Between(50, 500), [this, key] { StartRanks(key); });
    return;
  }
  BeginPart(key.first, key.second);
  for (const std::string& worker : attempt.workers) {
    if (worker != name_) world_->FindAgent(worker)->BeginPart(key.first, key.second);
  }
  world_->GangBegins(key.first, key.second);
  AgentMessage message;
  *message.mutable_started()->mutable_id() = attempt.id;
  Say(std::move(message));
  RunEvent event;
  event.mutable_phase()->set_name("train");
  Emit(attempt, event);
  BeginStep(key, world_->CheckpointStep(key.first) + 1);
}

void Agent::BeginStep(const Key& key, int step) {
  Attempt& attempt = attempts_.at(key);
  attempt.step_budget = attempt.budget;
  if (attempt.budget > 0) world_->RanksHold(key.first, attempt.budget);
  After(world_->chance().Between(50, 1500), [this, key, step] { MakeStep(key, step); });
}

bool Agent::Leads(const Attempt& attempt) const {
  return attempt.workers.empty() || attempt.workers.front() == name_;
}

bool Agent::Ready(const std::string& job, int attempt) const {
  const auto found = attempts_.find({job, attempt});
  return up_ && found != attempts_.end() && found->second.ready && !found->second.over &&
         !found->second.stopping;
}

void Agent::BeginPart(const std::string& job, int attempt) {
  Attempt& part = attempts_.at({job, attempt});
  part.alive = true;
  world_->RanksBegin(job, attempt, name_, part.devices);
}

void Agent::GangBroke(const std::string& job, int attempt) {
  // At the latest when a silent connection is given up.
  After(world_->chance().Between(0, 5000), [this, job, attempt] {
    const auto found = attempts_.find({job, attempt});
    if (found == attempts_.end() || !found->second.alive) return;
    if (Leads(found->second)) {
      End(found->second, AttemptEnded::FAILED);
    } else {
      Gone(found->second);
    }
  });
}

void Agent::Gone(Attempt& attempt) {
  if (!std::exchange(attempt.alive, false)) return;
  world_->RanksEnd(attempt.id.job(), name_);
  for (const std::string& worker : attempt.workers) {
    if (worker != name_) {
      world_->FindAgent(worker)->GangBroke(attempt.id.job(), attempt.id.attempt());
    }
  }
}

void Agent::MakeStep(const Key& key, int step) {
  auto found = attempts_.find(key);
  if (found == attempts_.end() || found->second.over || !found->second.alive) return;
  Attempt& attempt = found->second;
  const JobPlan& plan = world_->PlanOf(key.first);
  if (plan.bad_spec && step >= 2) {
    End(attempt, AttemptEnded::FAILED, Failure::USER_ERROR);
    return;
  }
  if (world_->faults() && world_->chance().Happens(40)) {  // a rank dies
    End(attempt, AttemptEnded::FAILED);
    return;
  }
  RunEvent event;
  if (step > plan.steps) {
    // Now and then a rank says that all is well and has nothing to show.
    if (!world_->faults() || !world_->chance().Happens(50)) {
      event.mutable_result()->set_steps(plan.steps);
      Emit(attempt, event);
    }
    After(world_->chance().Between(0, 2000), [this, key] {  // the upload of the result
      auto done = attempts_.find(key);
      if (done != attempts_.end() && !done->second.over) End(done->second, AttemptEnded::SUCCEEDED);
    });
    return;
  }
  event.mutable_step()->set_step(step);
  event.mutable_step()->set_steps(plan.steps);
  if (attempt.step_budget > 0) {
    lemo::v1::StepMemory& memory = *event.mutable_step()->mutable_memory();
    memory.set_budget_bytes(attempt.step_budget);
    memory.set_peak_bytes(world_->chance().Between(attempt.step_budget / 2, attempt.step_budget));
    memory.set_least_bytes(plan.least_bytes);
  }
  Emit(attempt, event);
  if (world_->chance().Happens(400)) {
    world_->CheckpointStep(key.first) = step;
    event.mutable_checkpoint()->set_step(step);
    Emit(attempt, event);
  }
  BeginStep(key, step + 1);
}

void Agent::Emit(Attempt& attempt, RunEvent event) {
  event.set_sequence(static_cast<int64_t>(attempt.events.size()) + 1);
  attempt.events.push_back(event);
  // Now and then one is held up, and the next comes before it.
  if (!world_->chance().Happens(50)) SendEvents(attempt, event.sequence());
}

void Agent::StopRanks(const Key& key, Ms delay, AttemptEnded::Outcome outcome) {
  attempts_.at(key).stopping = true;
  After(delay, [this, key, outcome] {
    auto found = attempts_.find(key);
    if (found == attempts_.end() || found->second.over) return;
    End(found->second, outcome);
    if (found->second.discard) attempts_.erase(found);
    MaybeGo();
  });
}

void Agent::End(Attempt& attempt, AttemptEnded::Outcome outcome, Failure::Kind kind) {
  Gone(attempt);
  attempt.over = true;
  *attempt.end.mutable_id() = attempt.id;
  attempt.end.set_outcome(outcome);
  attempt.end.set_last_sequence(static_cast<int64_t>(attempt.events.size()));
  attempt.end.set_run_seconds(1);
  if (outcome == AttemptEnded::FAILED) attempt.end.mutable_failure()->set_kind(kind);
  if (outcome == AttemptEnded::SUCCEEDED) {
    attempt.end.add_artifacts()->set_path("adapter/adapter_model.safetensors");
  }
  world_->store().Claim(attempt.id.job(), attempt.id.attempt(), attempt.end.last_sequence());
  if (!attempt.discard) SendEnd(attempt);
}

bool Agent::RanksAlive() const {
  return std::any_of(attempts_.begin(), attempts_.end(),
                     [](const auto& entry) { return entry.second.alive; });
}

void Agent::Crash(bool disk_lost) {
  if (!up_) return;
  BreakLink();
  up_ = false;
  link_ = nullptr;
  ++life_;
  // The ranks see the closed socket and go; the next life waits for that.
  Ms gone = 0;
  for (auto& [key, attempt] : attempts_) {
    if (!attempt.alive) continue;
    const Ms delay = world_->chance().Between(0, 2000);
    gone = std::max(gone, delay);
    attempt.alive = false;
    After(delay, [this, id = attempt.id, workers = attempt.workers] {
      world_->RanksEnd(id.job(), name_);
      for (const std::string& worker : workers) {
        if (worker != name_) world_->FindAgent(worker)->GangBroke(id.job(), id.attempt());
      }
    });
  }
  for (auto entry = attempts_.begin(); entry != attempts_.end();) {
    if (disk_lost || entry->second.discard) {
      entry = attempts_.erase(entry);
      continue;
    }
    Attempt& attempt = (entry++)->second;
    // A disk that lied about its sync: the tail of the spool is gone.
    if (!attempt.over && world_->chance().Happens(50)) {
      attempt.events.resize(
          static_cast<size_t>(world_->chance().Between(0, static_cast<Ms>(attempt.events.size()))));
    }
  }
  After(gone + world_->chance().Between(0, 25'000), [this] { Begin(); });
}

void Agent::Leave() {
  if (!up_ || leaving_) return;
  leaving_ = true;
  AgentMessage message;
  message.mutable_drain();
  Say(std::move(message));
  for (auto& [key, attempt] : attempts_) {
    if (!attempt.over) StopRanks(key, world_->chance().Between(0, 4000), AttemptEnded::STOPPED);
  }
  MaybeGo();
}

void Agent::MaybeGo() {
  if (!up_ || !leaving_ || !attempts_.empty()) return;
  world_->Trace(absl::StrCat(name_, " has drained and goes"));
  Crash(false);
}

}  // namespace lemo::coordinator::sim
