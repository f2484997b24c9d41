// Any bytes as what agents, people and time do to the coordinator's core: the rules of core.h hold
// after every step. The judge is the store of the simulation (tests/sim/core/store.h): attempts
// only grow, events have no gap, jobs that have ended stay, no device has two jobs.
//
// The simulation's agents are honest and its network is not. These agents lie, about everything.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "coordinator/core/core.h"
#include "google/protobuf/stubs/logging.h"
#include "scheduler/scheduler.h"
#include "tests/fuzz/worker_stream/said.h"
#include "tests/sim/core/store.h"

namespace lemo::coordinator::fuzz {
namespace {

using lemo::v1::Job;

constexpr int kStepsMost = 3000;

// What came about, told at the end: an input in which nothing happens proves nothing.
struct Tally {
  int64_t steps = 0, attempts = 0, gangs = 0, succeeded = 0, failed = 0, cancelled = 0, paused = 0,
          restarts = 0, run_events = 0, starts = 0;
  ~Tally() {
    std::printf(
        "%ld steps, %ld starts of the coordinator, %ld attempts (%ld over several workers), %ld "
        "restarts, %ld pauses, "
        "%ld events of runs; %ld jobs succeeded, %ld failed, %ld were cancelled\n",
        steps, starts, attempts, gangs, restarts, paused, run_events, succeeded, failed, cancelled);
  }
} tally;

class World {
 public:
  explicit World(Bytes bytes) : bytes_(bytes) { Start(); }

  void Run() {
    for (int step = 0; step < kStepsMost && !bytes_.empty(); ++step) {
      now_ += absl::Milliseconds(bytes_.Below(64));
      Act();
    }
  }

 private:
  void Require(bool condition, const std::string& what) {
    if (condition) return;
    std::fprintf(stderr, "broken: %s\n", what.c_str());
    std::abort();
  }

  // A coordinator over what is stored; streams of the former one are gone.
  void Start() {
    ++tally.starts;
    sessions_.clear();
    core_ = std::make_unique<Core>(CoreOptions(), &scheduler_);
    CarryOut(core_->Recover(store_.Active(), store_.cordoned(), now_));
    CheckCore();
  }

  void Act() {
    switch (bytes_.Below(32)) {
      case 0:
        if (bytes_.Below(4) == 0) Start();
        break;
      case 1:
      case 2:
        Submit();
        break;
      case 3:
      case 4:
      case 5: {
        Validated validated{JobName(bytes_), {}, bytes_.Near(500)};
        if (bytes_.Below(8) == 0) {
          validated.failure.emplace().set_kind(lemo::v1::Failure::USER_ERROR);
        }
        Deliver(validated);
        break;
      }
      case 6:
        if (bytes_.Below(2) == 0) Deliver(CancelRequested{JobName(bytes_)});
        break;
      case 7:
        Deliver(PauseRequested{JobName(bytes_)});
        break;
      case 8:
      case 9:
        Deliver(ResumeRequested{JobName(bytes_)});
        break;
      case 10:
      case 11:
      case 12: {
        const int64_t session = bytes_.Below(16) == 0 ? AnySession() : ++last_session_;
        AgentConnected event{session, MakeHello(*core_, bytes_)};
        sessions_[session] = event.hello.worker();
        Deliver(event);
        break;
      }
      case 13: {
        const int64_t session = AnySession();
        sessions_.erase(session);
        Deliver(AgentDisconnected{session});
        break;
      }
      case 14:
        Deliver(CordonRequested{WorkerName(bytes_), bytes_.Below(3) == 0});
        break;
      case 15:
        if (bytes_.Below(4) == 0) Deliver(DrainRequested{WorkerName(bytes_)});
        break;
      case 16:
        now_ += absl::Seconds(bytes_.Below(20));
        Deliver(Tick{});
        break;
      case 17:  // clocks are set, forth and back
        if (bytes_.Below(4) == 0) now_ += absl::Hours(bytes_.Below(9) - 4);
        Deliver(Tick{});
        break;
      case 18:
        if (core_->NextWake() != absl::InfiniteFuture()) now_ = std::max(now_, core_->NextWake());
        Deliver(Tick{});
        break;
      default: {
        const int64_t session = AnySession();
        const auto worker = sessions_.find(session);
        Deliver(AgentSaid{
            session, MakeMessage(*core_, worker == sessions_.end() ? "" : worker->second, bytes_)});
      }
    }
  }

  void Submit() {
    Submitted event;
    event.record.job.set_name(JobName(bytes_));
    // The store keeps jobs that have ended: a name is used once.
    if (store_.jobs().count(event.record.job.name()) > 0 &&
        core_->Find(event.record.job.name()) == nullptr) {
      return;
    }
    event.record.number = ++last_number_;
    lemo::v1::JobSpec& spec = *event.record.job.mutable_spec();
    spec.mutable_restart()->set_limit(bytes_.Below(4));
    spec.mutable_restart()->set_backoff_seconds(bytes_.Below(3));
    if (bytes_.Below(3) == 0) spec.mutable_resources()->set_device("cpu");
    if (bytes_.Below(8) == 0) spec.mutable_limits()->set_run_seconds(bytes_.Below(30));
    // From what was drawn, so that older inputs say the rest of what they said.
    const int ranks = static_cast<int>(last_number_ % 7);
    if (ranks > 0) spec.mutable_resources()->set_ranks(ranks);
    if (last_number_ % 2 == 0) spec.mutable_resources()->set_min_ranks((ranks + 1) / 2);
    if (last_number_ % 3 == 0) spec.mutable_run()->mutable_parallel()->set_tensor(2);
    Deliver(event);
  }

  // A stream that is open mostly, or was, or never will be.
  int64_t AnySession() {
    if (bytes_.Below(16) == 0 || sessions_.empty()) return bytes_.Next();
    return std::next(sessions_.begin(), bytes_.Below(static_cast<int>(sessions_.size())))->first;
  }

  void Deliver(const Event& event) {
    ++tally.steps;
    CarryOut(core_->Step(event, now_).effects);
    CheckCore();
  }

  void CarryOut(const std::vector<Effect>& effects) {
    bool durable = true;
    for (const Effect& effect : effects) {
      const auto* persist = std::get_if<Persist>(&effect);
      const auto* cordon = std::get_if<PersistWorker>(&effect);
      if (persist != nullptr) {
        Require(durable, "a job is stored after other effects");
        const std::string fault = store_.Apply(*persist);
        Require(fault.empty(), persist->record.job.ShortDebugString() + ": " + fault);
        for (const lemo::v1::JobEvent& event : persist->events) Count(event);
      } else if (cordon != nullptr) {
        store_.Apply(*cordon);
      }
    }
    const std::string fault = store_.EndTransaction();
    Require(fault.empty(), fault);
    for (const Effect& effect : effects) CarryOut(effect);
  }

  void Count(const lemo::v1::JobEvent& event) {
    tally.run_events += event.has_run();
    if (!event.has_state() || event.state().to() == event.state().from()) return;
    const Job::State to = event.state().to();
    tally.attempts += to == Job::STARTING;
    const JobRecord* record = core_->Find(event.job());
    tally.gangs += to == Job::STARTING && record != nullptr && record->job.nodes_size() > 1;
    tally.succeeded += to == Job::SUCCEEDED;
    tally.failed += to == Job::FAILED;
    tally.cancelled += to == Job::CANCELLED;
    tally.paused += to == Job::PAUSED;
    tally.restarts += event.state().reason_code() == Job::BACKING_OFF;
  }

  void CarryOut(const Effect& effect) {
    if (const auto* send = std::get_if<Send>(&effect)) {
      Require(sessions_.count(send->session) > 0, "a message goes to a stream that is not open");
      CheckSent(send->message);
    } else if (const auto* close = std::get_if<Close>(&effect)) {
      Require(!close->reason.ok(), "a stream is closed without a reason");
      sessions_.erase(close->session);
    } else if (const auto* log = std::get_if<AppendLog>(&effect)) {
      const auto stored = store_.jobs().find(log->job);
      Require(stored != store_.jobs().end() && log->chunk.attempt() >= 1 &&
                  log->chunk.attempt() <= stored->second.job.attempt(),
              "a log of an attempt that never was is kept");
      Require(log->chunk.rank() >= 0 && log->chunk.offset() >= 0, "a log has an impossible place");
    } else if (const auto* start = std::get_if<StartValidation>(&effect)) {
      Require(store_.jobs().count(start->record.job.name()) > 0,
              "a job is checked that is not stored");
    }
  }

  void CheckSent(const lemo::v1::CoordinatorMessage& message) {
    if (message.has_assign()) {
      const lemo::v1::AttemptId& id = message.assign().id();
      const auto stored = store_.jobs().find(id.job());
      Require(stored != store_.jobs().end() && stored->second.job.attempt() == id.attempt() &&
                  sim::IsPlaced(stored->second.job),
              "an attempt is assigned that is not stored");
    } else if (message.has_acknowledged()) {
      const lemo::v1::AttemptId& id = message.acknowledged().id();
      const auto stored = store_.jobs().find(id.job());
      if (stored == store_.jobs().end() || !sim::IsPlaced(stored->second.job) ||
          stored->second.job.attempt() != id.attempt()) {
        return;  // dropped, and acknowledged so that the agent does not keep them
      }
      // The current attempt's, unless another worker speaks of it.
      Require(message.acknowledged().through_sequence() >= 0, "an event below the first is taken");
    }
  }

  // What the core believes is what is stored.
  void CheckCore() {
    for (const auto& [name, stored] : store_.jobs()) {
      const JobRecord* record = core_->Find(name);
      Require((record == nullptr) == sim::HasEnded(stored.job),
              name + ": memory and store differ on whether it has ended");
      if (record == nullptr) continue;
      Require(record->job.etag() == stored.job.etag(), name + ": memory and store differ");
      Require(record->run_seconds_used >= 0, name + ": its run time is not a time");
      Require(record->job.restarts() <= record->job.spec().restart().limit(),
              name + " was restarted too often");
    }
    for (const lemo::v1::Worker& worker : core_->Workers()) {
      for (const std::string& job : worker.jobs()) {
        const JobRecord* record = core_->Find(job);
        const bool part =
            record != nullptr && sim::IsPlaced(record->job) &&
            std::any_of(record->job.nodes().begin(), record->job.nodes().end(),
                        [&](const auto& node) { return node.worker() == worker.name(); });
        Require(part, job + " keeps devices of " + worker.name() + " without running there");
      }
    }
    for (const JobRecord* record : core_->Queue()) {
      Require(!record->job.reason().empty(), record->job.name() + " waits without a reason");
    }
    Require(core_->NextWake() > absl::InfinitePast(), "the core never wakes");
  }

  Bytes bytes_;
  absl::Time now_ = absl::FromUnixSeconds(1'700'000'000);
  const scheduler::FifoScheduler scheduler_;
  sim::FakeStore store_;
  std::unique_ptr<Core> core_;
  std::map<int64_t, std::string> sessions_;  // open ones, and whom they say they are
  int64_t last_session_ = 0;
  int64_t last_number_ = 0;
};

}  // namespace
}  // namespace lemo::coordinator::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Bytes that are no message are part of the game, and no news.
  google::protobuf::SetLogHandler(nullptr);
  lemo::coordinator::fuzz::World(lemo::coordinator::fuzz::Bytes(data, size)).Run();
  return 0;
}
