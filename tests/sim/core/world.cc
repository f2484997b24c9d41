#include "tests/sim/core/world.h"

#include <algorithm>
#include <iostream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/sim/core/agent.h"

namespace lemo::coordinator::sim {

using lemo::v1::AgentMessage;
using lemo::v1::CoordinatorMessage;
using lemo::v1::Failure;
using lemo::v1::Job;

namespace {

const absl::Time kBegin = absl::FromUnixSeconds(1'700'000'000);
constexpr Ms kLongestWait = 30 * 60 * 1000;  // after the world has healed

std::string JobName(int64_t number) { return absl::StrCat("jobs/", number); }

std::string Describe(const Job& job) {
  return absl::StrCat(job.name(), " ", Job::State_Name(job.state()), " attempt ", job.attempt(),
                      " on ", job.worker(), " stop ", static_cast<int>(job.stop_request()), ": ",
                      Job::ReasonCode_Name(job.reason_code()), " ", job.reason());
}

}  // namespace

World::World(uint64_t seed, bool trace) : chance_(seed), trace_(trace) {}
World::~World() = default;

void World::Trace(const std::string& what) {
  if (trace_) std::cerr << loop_.now() << " " << what << "\n";
}

void World::Break(const std::string& rule) {
  if (fault_.empty()) fault_ = absl::StrCat("at ", loop_.now(), " ms: ", rule);
  Trace(absl::StrCat("BROKEN: ", rule));
}

// --- The coordinator ---

absl::Time World::CoordinatorTime() const {
  return kBegin + absl::Milliseconds(loop_.now()) + skew_;
}

void World::StartCoordinator() {
  ++epoch_;
  core_ = std::make_unique<Core>(options_, &scheduler_);
  Trace("coordinator starts");
  if (CarryOut(core_->Recover(store_.Active(), store_.cordoned(), CoordinatorTime()))) PlanTick();
}

void World::CrashCoordinator() {
  if (core_ == nullptr) return;
  Trace("coordinator dies");
  ++tally_.crashes;
  core_.reset();
  validating_.clear();
  for (auto& [session, peer] : peers_) {
    peer.link->broken = true;
    loop_.After(chance_.Between(0, 3000),
                [agent = peer.agent, link = peer.link] { agent->OnBroken(link); });
  }
  peers_.clear();
  loop_.After(chance_.Between(100, chance_.Happens(200) ? 40'000 : 4'000),
              [this] { StartCoordinator(); });
}

bool World::Deliver(const Event& event, absl::Status* status) {
  if (core_ == nullptr || Frozen() || !fault_.empty()) return false;
  ++tally_.steps;
  Core::Outcome outcome = core_->Step(event, CoordinatorTime());
  if (status != nullptr) *status = outcome.status;
  if (!CarryOut(outcome.effects)) return false;
  CheckCore();
  PlanTick();
  return true;
}

// A process that was stopped finds what came meanwhile, in order, when it goes on.
void World::DeliverWhenAwake(int epoch, Event event) {
  if (epoch != epoch_) return;
  if (!Frozen() && backlog_.empty()) {
    Deliver(event);
    return;
  }
  backlog_.push_back({epoch, std::move(event)});
  if (backlog_.size() == 1) loop_.At(frozen_until_, [this] { WorkOffBacklog(); });
}

void World::WorkOffBacklog() {
  if (Frozen()) {
    loop_.At(frozen_until_, [this] { WorkOffBacklog(); });
    return;
  }
  std::vector<std::pair<int, Event>> backlog;
  backlog.swap(backlog_);
  for (const auto& [epoch, event] : backlog) {
    if (epoch == epoch_) Deliver(event);
  }
}

void World::PlanTick() {
  const absl::Time wake = core_->NextWake();
  ++tick_;
  if (wake == absl::InfiniteFuture()) return;
  const Ms due = absl::ToInt64Milliseconds(
      absl::Ceil(std::max(wake - CoordinatorTime(), absl::ZeroDuration()), absl::Milliseconds(1)));
  const Ms late = chance_.Between(0, 20);
  loop_.After(due + late, [this, tick = tick_] {
    if (tick == tick_ && core_ != nullptr) DeliverWhenAwake(epoch_, Tick{});
  });
}

bool World::CarryOut(const std::vector<Effect>& effects) {
  const auto crashes = [&] {
    if (!faults_ || !chance_.Happens(4)) return false;
    CrashCoordinator();
    return true;
  };
  const auto durable = [](const Effect& effect) {
    return std::holds_alternative<Persist>(effect) || std::holds_alternative<PersistWorker>(effect);
  };
  // One transaction: all of it or nothing.
  size_t next = 0;
  if (!effects.empty() && crashes()) return false;
  for (; next < effects.size() && durable(effects[next]); ++next) {
    if (!CarryOut(effects[next])) return false;
  }
  if (std::string fault = store_.EndTransaction(); !fault.empty()) Break(fault);
  for (; next < effects.size(); ++next) {
    if (crashes()) return false;
    if (durable(effects[next])) Break("something is stored after other effects");
    if (!CarryOut(effects[next])) return false;
  }
  return true;
}

bool World::CarryOut(const Effect& effect) {
  if (const auto* persist = std::get_if<Persist>(&effect)) {
    const auto before = store_.jobs().find(persist->record.job.name());
    if (trace_ && (before == store_.jobs().end() ||
                   before->second.job.reason() != persist->record.job.reason())) {
      Trace(Describe(persist->record.job));
    }
    const double charged =
        before == store_.jobs().end() || before->second.job.state() != Job::RUNNING
            ? 0
            : persist->record.run_seconds_used - before->second.run_seconds_used;
    const std::string fault = store_.Apply(*persist);
    if (!fault.empty()) Break(absl::StrCat(Describe(persist->record.job), ": ", fault));
    const Job& job = persist->record.job;
    tally_.succeeded += job.state() == Job::SUCCEEDED ? 1 : 0;
    tally_.failed += job.state() == Job::FAILED ? 1 : 0;
    tally_.cancelled += job.state() == Job::CANCELLED ? 1 : 0;
    for (const lemo::v1::JobEvent& event : persist->events) {
      const lemo::v1::ContractChange& change = event.contract();
      tally_.cuts += change.kind() == lemo::v1::ContractChange::CUT ? 1 : 0;
      tally_.kept_cuts += change.kind() == lemo::v1::ContractChange::WITHIN ? 1 : 0;
      tally_.raises += change.kind() == lemo::v1::ContractChange::RAISED ? 1 : 0;
      if (event.has_contract() && change.to_bytes() < plans_[job.name()].least_bytes) {
        Break(absl::StrCat(job.name(), " was cut to ", change.to_bytes()));
      }
    }
    if (job.has_allotment() &&
        (!IsPlaced(job) || job.allotment().memory_bytes() > job.contract().memory_bytes())) {
      Break(absl::StrCat(job.name(), " has what is not its own"));
    }
    const JobPlan& plan = plans_[job.name()];
    if (job.state() == Job::FAILED && job.failure().kind() == Failure::USER_ERROR &&
        !plan.bad_data && !plan.bad_spec) {
      Break(absl::StrCat(job.name(), " was called the user's fault"));
    }
    if (job.state() == Job::SUCCEEDED && (plan.bad_data || plan.bad_spec)) {
      Break(absl::StrCat(job.name(), " cannot have succeeded"));
    }
    if (job.reason_code() == Job::BACKING_OFF && absl::StrContains(job.reason(), "was lost")) {
      ++tally_.lost_leases;
      tally_.lost_seconds += charged;
    }
  } else if (const auto* cordon = std::get_if<PersistWorker>(&effect)) {
    store_.Apply(*cordon);
  } else if (const auto* send = std::get_if<Send>(&effect)) {
    SendToAgent(send->session, send->message);
  } else if (const auto* close = std::get_if<Close>(&effect)) {
    Trace(absl::StrCat("close of session ", close->session, ": ", close->reason.ToString()));
    auto found = peers_.find(close->session);
    if (found != peers_.end()) {
      // What was sent before still arrives.
      loop_.At(std::max(found->second.link->last_to_agent, loop_.now() + chance_.Between(1, 50)),
               [peer = found->second] { peer.agent->OnBroken(peer.link); });
      peers_.erase(found);
    }
  } else if (const auto* validation = std::get_if<StartValidation>(&effect)) {
    const std::string job = validation->record.job.name();
    if (!validating_.insert(job).second) Break(absl::StrCat(job, " is validated twice at once"));
    loop_.After(chance_.Between(0, 3000), [this, job, epoch = epoch_] {
      if (epoch != epoch_ || validating_.erase(job) == 0) return;
      Validated done{job, {}, 1000};
      const JobPlan& plan = plans_[job];
      if (plan.bad_data) {
        done.failure.emplace().set_kind(Failure::USER_ERROR);
      } else if (plan.contract_bytes > 0) {
        lemo::v1::Contract& contract = done.contract.emplace();
        contract.set_memory_bytes(plan.contract_bytes);
        contract.mutable_offer()->set_ranks(plan.ranks);
        contract.mutable_offer()->set_device("cpu");
        contract.mutable_offer()->mutable_high()->set_base(plan.base_bytes);
        contract.mutable_offer()->mutable_overrides()->mutable_model()->set_compute_type("float32");
        contract.mutable_offer()->mutable_overrides()->mutable_parallel()->set_tensor(plan.tensor);
      }
      DeliverWhenAwake(epoch, done);
    });
  } else if (const auto* stop = std::get_if<StopValidation>(&effect)) {
    // Too late now and then: the result is under way.
    if (chance_.Happens(500)) validating_.erase(stop->job);
  }
  return fault_.empty();
}

void World::CheckCore() {
  for (const lemo::v1::Worker& worker : core_->Workers()) {
    for (const std::string& job : worker.jobs()) {
      const JobRecord* record = core_->Find(job);
      const bool part =
          record != nullptr && IsPlaced(record->job) &&
          std::any_of(record->job.nodes().begin(), record->job.nodes().end(),
                      [&](const auto& node) { return node.worker() == worker.name(); });
      if (!part) {
        Break(absl::StrCat(job, " keeps devices of ", worker.name(), " without running there"));
      }
    }
  }
  // What the coordinator thinks is what it has stored.
  for (const auto& [name, stored] : store_.jobs()) {
    const JobRecord* record = core_->Find(name);
    if ((record == nullptr) != HasEnded(stored.job)) {
      Break(absl::StrCat(name, ": memory and store differ on whether it has ended"));
    } else if (record != nullptr && record->job.etag() != stored.job.etag()) {
      Break(absl::StrCat(name, ": memory and store differ"));
    }
  }
  for (const JobRecord* record : core_->Queue()) {
    if (record->job.reason().empty() || record->job.reason_code() == Job::REASON_UNSPECIFIED) {
      Break(absl::StrCat(record->job.name(), " waits without a reason"));
    }
  }
}

// --- The network ---

std::shared_ptr<Link> World::Dial(Agent* agent) {
  if (core_ == nullptr) return nullptr;
  auto link = std::make_shared<Link>();
  link->session = next_session_++;
  link->epoch = epoch_;
  peers_[link->session] = {agent, link};
  return link;
}

void World::SendToCoordinator(const std::shared_ptr<Link>& link, AgentMessage message) {
  Ms& last = link->last_to_coordinator;
  last = std::max({last, loop_.now() + chance_.Between(1, chance_.Happens(20) ? 3000 : 60),
                   link->stalled_until});
  loop_.At(last, [this, link, message = std::move(message)] {
    if (link->broken || link->epoch != epoch_) return;
    if (message.has_hello()) {
      DeliverWhenAwake(link->epoch, AgentConnected{link->session, message.hello()});
    } else {
      DeliverWhenAwake(link->epoch, AgentSaid{link->session, message});
    }
  });
}

void World::SendToAgent(int64_t session, CoordinatorMessage message) {
  auto found = peers_.find(session);
  if (found == peers_.end()) return;
  const Peer& peer = found->second;
  Ms& last = peer.link->last_to_agent;
  last = std::max({last, loop_.now() + chance_.Between(1, chance_.Happens(20) ? 3000 : 60),
                   peer.link->stalled_until});
  loop_.At(last, [peer, message = std::move(message)] {
    if (!peer.link->broken) peer.agent->OnMessage(peer.link, message);
  });
}

void World::BreakLink(Agent* agent, const std::shared_ptr<Link>& link) {
  if (link->broken) return;
  ++tally_.broken_links;
  link->broken = true;
  loop_.After(chance_.Between(0, 3000), [agent, link] { agent->OnBroken(link); });
  loop_.After(chance_.Between(0, 30'000), [this, link] {
    peers_.erase(link->session);
    DeliverWhenAwake(link->epoch, AgentDisconnected{link->session});
  });
}

void World::RanksBegin(const std::string& job, int attempt, const std::string& worker,
                       const std::vector<int>& devices) {
  Trace(absl::StrCat("ranks of ", job, " attempt ", attempt, " begin on ", worker));
  const JobPlan& plan = plans_[job];
  Gang& gang = running_.try_emplace(job, Gang{attempt, {}, plan.contract_bytes}).first->second;
  if (gang.attempt != attempt || !gang.devices.emplace(worker, devices).second) {
    Break(absl::StrCat(job, " runs twice: attempt ", gang.attempt, " and attempt ", attempt, " on ",
                       worker));
  }
  for (int device : devices) {
    for (const auto& [other, running] : running_) {
      const auto there = running.devices.find(worker);
      if (other == job || there == running.devices.end() ||
          std::count(there->second.begin(), there->second.end(), device) == 0) {
        continue;
      }
      ++tally_.shared;
      if (plan.base_bytes > 0 && plans_[other].base_bytes > 0 &&
          plan.model == plans_[other].model) {
        ++tally_.on_one_base;
      }
      if (plan.contract_bytes == 0 || plans_[other].contract_bytes == 0) {
        Break(absl::StrCat(job, " and ", other, " run on one device of ", worker));
      }
    }
    CheckDevice(worker, device);
  }
  auto stored = store_.jobs().find(job);
  if (stored == store_.jobs().end() || stored->second.job.attempt() < attempt) {
    Break(absl::StrCat(job, " runs an attempt that was not stored"));
  }
}

void World::CheckDevice(const std::string& worker, int device) {
  const Agent& agent = *FindAgent(worker);
  std::map<int, int64_t> bases;  // by model
  int64_t bytes = 0;
  int jobs = 0;
  std::string names;
  for (const auto& [job, running] : running_) {
    const auto there = running.devices.find(worker);
    if (there == running.devices.end() ||
        std::count(there->second.begin(), there->second.end(), device) == 0) {
      continue;
    }
    ++jobs;
    absl::StrAppend(&names, " ", job, " (", running.holds, ")");
    const JobPlan& plan = plans_[job];
    bytes += running.holds;
    if (plan.base_bytes == 0 || !agent.SharesBases(device)) continue;
    bytes -= plan.base_bytes;
    bases[plan.model] = plan.base_bytes;
  }
  for (const auto& [model, base] : bases) bytes += base;
  if (jobs > 1 && bytes > agent.MemoryOf(device)) {
    Break(absl::StrCat("on device ", device, " of ", worker, " are", names, ", ", bytes, " of ",
                       agent.MemoryOf(device)));
  }
}

void World::RanksHold(const std::string& job, int64_t bytes) {
  const auto found = running_.find(job);
  if (found == running_.end() || bytes == found->second.holds) return;
  Trace(absl::StrCat("ranks of ", job, " hold ", bytes));
  found->second.holds = bytes;
  for (const auto& [worker, devices] : found->second.devices) {
    for (const int device : devices) CheckDevice(worker, device);
  }
}

void World::RanksEnd(const std::string& job, const std::string& worker) {
  Trace(absl::StrCat("ranks of ", job, " are gone from ", worker));
  auto found = running_.find(job);
  if (found == running_.end()) return;
  found->second.devices.erase(worker);
  if (found->second.devices.empty()) running_.erase(found);
}

void World::GangBegins(const std::string& job, int attempt) {
  ++tally_.attempts;
  size_t ranks = 0;
  const Gang& gang = running_.at(job);
  for (const auto& [worker, devices] : gang.devices) ranks += devices.size();
  if (gang.devices.size() > 1) ++tally_.gangs;
  const JobPlan& plan = plans_[job];
  const size_t wanted = static_cast<size_t>(plan.ranks);
  if (ranks < wanted) ++tally_.shrunk;
  if (ranks > wanted || ranks < static_cast<size_t>(plan.min_ranks) ||
      ranks % static_cast<size_t>(plan.tensor) != 0) {
    Break(absl::StrCat(job, " began with ", ranks, " ranks"));
  }
  const auto stored = store_.jobs().find(job);
  if (stored != store_.jobs().end() && stored->second.job.attempt() == attempt &&
      ranks != static_cast<size_t>(RanksOf(stored->second))) {
    Break(absl::StrCat(job, " began with a part of its gang"));
  }
}

Agent* World::FindAgent(const std::string& worker) {
  for (const auto& agent : agents_) {
    if (agent->name() == worker) return agent.get();
  }
  return nullptr;
}

// --- People ---

void World::Submit(const std::string& job) {
  JobPlan& plan = plans_[job];
  plan.ranks = static_cast<int>(chance_.Between(1, chance_.Happens(500) ? 6 : 2));
  plan.ranks = std::min(plan.ranks, most_ranks_);
  if (plan.ranks % 2 == 0 && chance_.Happens(200)) plan.tensor = 2;
  plan.min_ranks = plan.ranks;
  if (chance_.Happens(300)) plan.min_ranks = static_cast<int>(chance_.Between(1, plan.ranks));
  plan.steps = static_cast<int>(chance_.Between(1, 10));
  plan.bad_data = chance_.Happens(60);
  plan.bad_spec = chance_.Happens(60);
  plan.impossible = chance_.Happens(40);
  if (plan.impossible) plan.ranks = plan.min_ranks = 18;
  plan.endless = chance_.Happens(60);
  if (plan.endless) plan.steps = 1'000'000;
  // The smallest device has 1000.
  if (plan.min_ranks == plan.ranks && chance_.Happens(tight_ ? 900 : 500)) {
    plan.contract_bytes = chance_.Between(100, 1000);
    if (chance_.Happens(700)) {
      plan.least_bytes = chance_.Between(plan.contract_bytes / 10, plan.contract_bytes);
    }
    // Of two models, each of one size; which part of it a rank of a tensor group has is not known.
    plan.model = static_cast<int>(chance_.Between(0, 2));
    const int64_t base = plan.model * 150;
    if (plan.tensor == 1 && base < plan.contract_bytes) plan.base_bytes = base;
    plan.least_bytes = plan.least_bytes > 0 ? std::max(plan.least_bytes, plan.base_bytes + 1) : 0;
  }
  Submitted event;
  event.record.number = next_number_++;
  event.record.job.set_name(job);
  lemo::v1::JobSpec& spec = *event.record.job.mutable_spec();
  spec.mutable_resources()->set_ranks(plan.ranks);
  if (plan.contract_bytes > 0) {
    spec.mutable_plan();
    if (plan.least_bytes > 0) spec.mutable_plan()->set_elastic(true);
    spec.mutable_run()->mutable_tuner()->mutable_lora();
    lemo::v1::ModelFile& file = event.record.model_files.emplace_back();
    file.set_path("model.safetensors");
    file.set_sha256(absl::StrCat("of model ", plan.model));
  }
  if (plan.min_ranks < plan.ranks) spec.mutable_resources()->set_min_ranks(plan.min_ranks);
  if (plan.tensor > 1) spec.mutable_run()->mutable_parallel()->set_tensor(plan.tensor);
  if (chance_.Happens(300)) spec.mutable_resources()->set_device("cpu");
  if (chance_.Happens(300))
    spec.mutable_restart()->set_limit(static_cast<int>(chance_.Between(0, 3)));
  absl::Status status;
  if (!Deliver(event, &status)) return;
  if (!status.ok()) Break(absl::StrCat("submission refused: ", status.ToString()));
  acknowledged_.insert(job);
  Trace(absl::StrCat(job, " acknowledged"));
}

void World::Ask(const std::string& job) {
  absl::Status status;
  switch (chance_.Between(0, 5)) {
    case 0:
      Trace(absl::StrCat("cancel ", job));
      if (Deliver(CancelRequested{job}, &status) && status.ok()) cancelled_.insert(job);
      break;
    case 1:
    case 2:
      Trace(absl::StrCat("pause ", job));
      Deliver(PauseRequested{job}, &status);
      break;
    default:
      Trace(absl::StrCat("resume ", job));
      Deliver(ResumeRequested{job}, &status);
  }
  if (!fault_.empty() || core_ == nullptr || status.ok()) return;
  auto stored = store_.jobs().find(job);
  const bool gone = stored == store_.jobs().end() || HasEnded(stored->second.job);
  const bool dying = !gone && stored->second.job.stop_request() == Job::STOP_CANCEL;
  // A job that was being cancelled may have ended in the very step that refused the request.
  if (!(gone && absl::IsNotFound(status)) &&
      !((dying || gone) && absl::IsFailedPrecondition(status))) {
    Break(absl::StrCat("a request for ", job, " was refused: ", status.ToString()));
  }
}

void World::Steer() {
  Agent& agent = *agents_[chance_.Between(0, static_cast<int64_t>(agents_.size()) - 1)];
  switch (chance_.Between(0, 3)) {
    case 0:
      Trace(absl::StrCat("drain ", agent.name()));
      Deliver(DrainRequested{agent.name()});
      break;
    case 1:
      Trace(absl::StrCat("cordon ", agent.name()));
      Deliver(CordonRequested{agent.name(), true});
      break;
    default:
      Deliver(CordonRequested{agent.name(), false});
  }
}

// --- What goes wrong ---

void World::Misfortune() {
  if (!faults_) return;
  Agent& agent = *agents_[chance_.Between(0, static_cast<int64_t>(agents_.size()) - 1)];
  switch (chance_.Between(0, 9)) {
    case 0:
      CrashCoordinator();
      break;
    case 1:
      Trace(absl::StrCat(agent.name(), " dies"));
      ++tally_.agent_crashes;
      agent.Crash(chance_.Happens(250));
      break;
    case 2:
      Trace(absl::StrCat(agent.name(), " is told to leave"));
      agent.Leave();
      break;
    case 3:
      Trace(absl::StrCat(agent.name(), " is cut off"));
      agent.CutOff(loop_.now() + chance_.Between(0, 40'000));
      break;
    case 4:
    case 5:
      Trace(absl::StrCat(agent.name(), "'s stream breaks"));
      agent.BreakLink();
      break;
    case 6:
    case 7:
      Trace(absl::StrCat(agent.name(), "'s stream stalls"));
      agent.Stall(loop_.now() + chance_.Between(500, 40'000));
      break;
    case 8:
      Trace("coordinator is stopped for a while");
      frozen_until_ = std::max(frozen_until_, loop_.now() + chance_.Between(100, 40'000));
      break;
    default:
      if (loop_.now() < next_jump_) break;
      next_jump_ = loop_.now() + 60'000;
      ++tally_.clock_jumps;
      skew_ += absl::Milliseconds(chance_.Happens(500) ? chance_.Between(-3'600'000, 3'600'000)
                                                       : chance_.Between(-20'000, 20'000));
      Trace("the coordinator's clock is set");
  }
  loop_.After(chance_.Between(100, chance_.Happens(500) ? 2000 : 10'000), [this] { Misfortune(); });
}

void World::Heal() {
  Trace("the world heals");
  faults_ = false;
  Tidy();
}

// People who want every job to end: they take cordons back, resume what is paused, and cancel what
// can never run or never ends.
void World::Tidy() {
  if (!fault_.empty() || AllEnded()) return;
  for (const std::string& worker : std::set<std::string>(store_.cordoned())) {
    Deliver(CordonRequested{worker, false});
  }
  for (const JobRecord& record : store_.Active()) {
    const std::string& name = record.job.name();
    if (plans_[name].impossible || plans_[name].endless) {
      Deliver(CancelRequested{name});
    } else if (record.job.state() == Job::PAUSED || record.job.stop_request() == Job::STOP_PAUSE) {
      Deliver(ResumeRequested{name});
    }
  }
  loop_.After(5000, [this] { Tidy(); });
}

bool World::AllEnded() const {
  return std::all_of(store_.jobs().begin(), store_.jobs().end(),
                     [](const auto& entry) { return HasEnded(entry.second.job); });
}

void World::Run() {
  tight_ = chance_.Happens(200);
  const int workers = static_cast<int>(chance_.Between(1, tight_ ? 1 : 4));
  int reachable_cpus = 0;
  for (int w = 0; w < workers; ++w) {
    std::vector<lemo::v1::Device> devices;
    // The first worker fits every possible job.
    const int cpus = static_cast<int>(tight_ ? 1 : chance_.Between(w == 0 ? 2 : 0, 3));
    const int count = cpus + static_cast<int>(tight_ ? 0 : chance_.Between(0, 2));
    for (int d = 0; d < count; ++d) {
      lemo::v1::Device& device = devices.emplace_back();
      device.set_index(d);
      device.set_kind(d < cpus ? lemo::v1::Device::CPU : lemo::v1::Device::CUDA);
      device.set_memory_bytes(chance_.Between(1000, tight_ ? 1500 : 3000));
      device.set_shares_bases(chance_.Happens(700));
      store_.SetDevice(absl::StrCat("workers/", w), device);
    }
    const bool reachable = chance_.Happens(800);
    most_ranks_ = std::max(most_ranks_, cpus);
    if (reachable) reachable_cpus += cpus;
    agents_.push_back(
        std::make_unique<Agent>(this, absl::StrCat("workers/", w), devices, reachable));
  }
  most_ranks_ = std::max(most_ranks_, reachable_cpus);
  StartCoordinator();
  for (const auto& agent : agents_) {
    loop_.After(chance_.Between(0, 5000), [&agent] { agent->Begin(); });
  }
  const Ms heal = chance_.Between(10'000, 150'000);
  const int jobs = static_cast<int>(chance_.Between(tight_ ? 4 : 1, 8));
  for (int j = 1; j <= jobs; ++j) {
    loop_.At(chance_.Between(0, heal / 2), [this, j] { Submit(JobName(j)); });
    for (Ms when = chance_.Between(0, heal); when < heal; when += chance_.Between(1000, 40'000)) {
      loop_.At(when, [this, j] { Ask(JobName(j)); });
    }
  }
  for (Ms when = chance_.Between(0, heal); when < heal; when += chance_.Between(1000, 40'000)) {
    loop_.At(when, [this] { Steer(); });
  }
  loop_.After(chance_.Between(0, 8000), [this] { Misfortune(); });
  loop_.At(heal, [this] { Heal(); });

  while (fault_.empty() && !(loop_.now() > heal && AllEnded()) &&
         loop_.now() < heal + kLongestWait) {
    if (!loop_.RunNext()) break;
  }
  if (!fault_.empty()) return;
  for (const auto& [name, record] : store_.jobs()) {
    if (!HasEnded(record.job)) Break(absl::StrCat("has not ended: ", Describe(record.job)));
  }
  for (const std::string& job : acknowledged_) {
    if (store_.jobs().count(job) == 0) Break(absl::StrCat(job, " was acknowledged and is gone"));
  }
  for (const std::string& job : cancelled_) {
    if (store_.jobs().at(job).job.state() != Job::CANCELLED) {
      Break(absl::StrCat(job, " was to be cancelled: ", Describe(store_.jobs().at(job).job)));
    }
  }
}

}  // namespace lemo::coordinator::sim
