#include "tests/sim/core/store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace lemo::coordinator::sim {

using lemo::v1::Failure;
using lemo::v1::Job;
using lemo::v1::JobEvent;

bool HasEnded(const Job& job) {
  return job.state() == Job::SUCCEEDED || job.state() == Job::FAILED ||
         job.state() == Job::CANCELLED;
}

bool IsPlaced(const Job& job) {
  return job.state() == Job::STARTING || job.state() == Job::RUNNING;
}

void FakeStore::Claim(const std::string& job, int attempt, int64_t events) {
  claims_[{job, attempt}] = events;
}

std::string FakeStore::CheckEvents(const JobRecord* before, const Persist& change) {
  const Job& job = change.record.job;
  int64_t sequence = before == nullptr ? 0 : before->job.last_sequence();
  Job::State state = before == nullptr ? Job::STATE_UNSPECIFIED : before->job.state();
  Job::ReasonCode code = before == nullptr ? Job::REASON_UNSPECIFIED : before->job.reason_code();
  for (const JobEvent& event : change.events) {
    if (event.sequence() != ++sequence) return "its events are not in sequence";
    if (event.job() != job.name()) return "it has an event of another job";
    if (event.has_state()) {
      if (event.state().from() != state) return "a state change starts from another state";
      if (event.state().from() == event.state().to() && event.state().reason_code() == code) {
        return "a state event tells of no change";
      }
      state = event.state().to();
      code = event.state().reason_code();
    } else if (event.has_contract()) {
      if (event.attempt() != job.attempt()) return "a contract was amended for another attempt";
    } else {
      int64_t& count = run_events_[{job.name(), event.attempt()}];
      if (event.attempt() != job.attempt()) return "an event of another attempt was taken";
      if (event.run().sequence() != ++count) return "events of the run are doubled or missing";
      if (event.run().has_result()) results_.insert({job.name(), event.attempt()});
    }
  }
  if (sequence != job.last_sequence()) return "last_sequence is not that of its last event";
  if (state != job.state()) return "its state changed without an event";
  if (code != job.reason_code()) return "its reason code changed without an event";
  const auto taken = run_events_.find({job.name(), job.attempt()});
  if ((taken == run_events_.end() ? 0 : taken->second) != change.record.attempt_sequence) {
    return "attempt_sequence is not the count of the attempt's events";
  }
  return "";
}

std::string FakeStore::Apply(const Persist& change) {
  ++changes_;
  const Job& job = change.record.job;
  auto found = jobs_.find(job.name());
  const JobRecord* before = found == jobs_.end() ? nullptr : &found->second;
  if (before != nullptr) {
    if (HasEnded(before->job)) return "it changed after its end";
    if (job.attempt() < before->job.attempt()) return "its attempt went back";
    if (job.attempt() > before->job.attempt() + 1) return "an attempt was left out";
    if (job.attempt() > before->job.attempt() && IsPlaced(before->job) &&
        change.events.size() < 2) {
      return "a new attempt without the end of the former";
    }
    if (job.attempt() > before->job.attempt()) placed_.push_back(job.name());
    if (job.etag() == before->job.etag()) return "its etag stayed";
    if (change.record.run_seconds_used < before->run_seconds_used) return "its run time went back";
    const bool checked =
        before->job.state() == Job::VALIDATING || before->job.state() == Job::PLANNING;
    if (checked && before->job.stop_request() == Job::STOP_PAUSE && job.state() == Job::QUEUED) {
      return "it was asked to be paused and waits";
    }
    if (before->job.stop_request() == Job::STOP_CANCEL && !IsPlaced(job) &&
        job.state() != Job::CANCELLED) {
      return "it was asked to be cancelled and went on";
    }
  }
  if (job.reason().empty()) return "it has no reason";
  if (job.state() == Job::QUEUED && job.reason_code() == Job::REASON_UNSPECIFIED) {
    return "it waits without a reason code";
  }
  if (std::string fault = CheckEvents(before, change); !fault.empty()) return fault;
  if (IsPlaced(job) != !change.record.devices.empty()) return "its devices do not fit its state";
  // An end that the agent told counts when all of its events are there. Of a gang another agent's
  // word may be what counts, and then the lead may have been lost with its events.
  const bool alone = job.nodes_size() == 1;
  const bool told =
      job.state() == Job::SUCCEEDED ||
      (alone && (job.state() == Job::FAILED || job.reason_code() == Job::BACKING_OFF));
  const bool unheard = absl::StrContains(job.reason(), "was lost") ||
                       absl::StrContains(job.reason(), "no longer knows");
  auto claim = claims_.find({job.name(), job.attempt()});
  if (before != nullptr && IsPlaced(before->job) && told && !unheard && claim != claims_.end() &&
      change.record.attempt_sequence < claim->second) {
    return "its attempt ended before all of its events were stored";
  }
  if (job.state() == Job::SUCCEEDED) {
    if (!job.has_result() || job.artifacts().empty()) return "it succeeded without a result";
    if (results_.count({job.name(), job.attempt()}) == 0)
      return "its result is an earlier attempt's";
  }
  if (job.state() == Job::FAILED) {
    const int limit = job.spec().restart().has_limit() ? job.spec().restart().limit() : 5;
    if (job.failure().kind() == Failure::SYSTEM_ERROR && job.restarts() != limit) {
      return "a fault of ours ended it before its restarts were used up";
    }
  }
  jobs_[job.name()] = change.record;
  return "";
}

std::string FakeStore::EndTransaction() {
  for (const std::string& job : std::exchange(placed_, {})) {
    for (const lemo::v1::GangNode& node : jobs_.at(job).job.nodes()) {
      if (cordoned_.count(node.worker()) > 0) {
        return absl::StrCat(job, " was placed on cordoned ", node.worker());
      }
    }
  }
  struct Use {
    std::string holder;
    int64_t bytes = 0;  // by contract, what was cut left out
    bool alone = false;
    std::set<std::string> bases;
  };
  std::map<std::pair<std::string, int>, Use> taken;
  for (const auto& [name, record] : jobs_) {
    if (!IsPlaced(record.job)) continue;
    for (const lemo::v1::GangNode& node : record.job.nodes()) {
      for (int device : node.devices()) {
        Use& use = taken[{node.worker(), device}];
        const bool first = use.holder.empty();
        use.holder = name;
        use.alone = use.alone || !record.job.has_contract();
        const lemo::v1::Contract& contract = record.job.contract();
        // Of a device that nobody told of there is room for one.
        const auto known = devices_.find({node.worker(), device});
        const lemo::v1::Device& on =
            known != devices_.end() ? known->second : lemo::v1::Device::default_instance();
        use.bytes += record.job.has_allotment() ? record.job.allotment().memory_bytes()
                                                : contract.memory_bytes();
        if (on.shares_bases() && contract.base_bytes() > 0 &&
            !use.bases.insert(contract.base()).second) {
          use.bytes -= contract.base_bytes();
        }
        if (!first && (use.alone || use.bytes > on.memory_bytes())) {
          return absl::StrCat(name, " and another job have the same device");
        }
      }
    }
  }
  return "";
}

void FakeStore::Apply(const PersistWorker& change) {
  if (change.cordoned) {
    cordoned_.insert(change.worker);
  } else {
    cordoned_.erase(change.worker);
  }
}

std::vector<JobRecord> FakeStore::Active() const {
  std::vector<JobRecord> active;
  for (const auto& [name, record] : jobs_) {
    if (!HasEnded(record.job)) active.push_back(record);
  }
  std::sort(active.begin(), active.end(),
            [](const JobRecord& a, const JobRecord& b) { return a.number < b.number; });
  return active;
}

}  // namespace lemo::coordinator::sim
