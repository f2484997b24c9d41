// Requests of the API, and how a job changes.
#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/core/contract.h"
#include "coordinator/core/core.h"
#include "coordinator/core/timestamp.h"

namespace lemo::coordinator {

using lemo::v1::Failure;
using lemo::v1::Job;
using lemo::v1::JobEvent;

namespace {

absl::Status NotFound(const std::string& job) {
  return absl::NotFoundError(absl::StrCat(job, " does not exist or has ended"));
}

absl::Status BeingCancelled(const Job& job) {
  return absl::FailedPreconditionError(
      absl::StrCat(job.name(), " is ", Job::State_Name(job.state()), " and is being cancelled"));
}

bool BeingChecked(Job::State state) { return state == Job::VALIDATING || state == Job::PLANNING; }

std::string CheckText(const Job& job) {
  return job.state() == Job::PLANNING
             ? "its data and model are being checked and its offers worked out"
             : "its data and model are being checked";
}

bool OnWorker(Job::State state) { return state == Job::STARTING || state == Job::RUNNING; }

}  // namespace

std::vector<JobEvent>& Core::Touch(const JobRecord& record) {
  auto [found, added] = change_of_.try_emplace(record.job.name(), changes_.size());
  if (added) changes_.push_back(Change{record.job.name(), {}});
  return changes_[found->second].events;
}

JobEvent& Core::AddEvent(JobRecord& record) {
  JobEvent& event = Touch(record).emplace_back();
  Job& job = record.job;
  job.set_last_sequence(job.last_sequence() + 1);
  event.set_job(job.name());
  event.set_sequence(job.last_sequence());
  event.set_attempt(job.attempt());
  *event.mutable_time() = ToTimestamp(now_);
  return event;
}

void Core::Enter(JobRecord& record, Job::State state, Job::ReasonCode code,
                 const std::string& reason, const Failure* failure) {
  Job& job = record.job;
  const Job::State from = job.state();
  if (from == Job::QUEUED) {
    queue_.erase({record.queued_time, record.number, job.name()});
    // What others gave up for it may be theirs again.
    if (!OnWorker(state)) RequestPlacement();
  }
  if (state == Job::QUEUED) {
    record.queued_time = now_;
    queue_.emplace(record.queued_time, record.number, job.name());
    RequestPlacement();
  }
  if (OnWorker(from) && !OnWorker(state)) {
    for (const lemo::v1::GangNode& node : job.nodes()) {
      workers_.at(node.worker()).jobs.erase(job.name());
    }
    endings_.erase(job.name());
    record.devices.clear();
    job.clear_allotment();
    RequestPlacement();
  }
  if (OnWorker(state) && !OnWorker(from)) {
    for (const lemo::v1::GangNode& node : job.nodes()) {
      workers_.at(node.worker()).jobs.insert(job.name());
    }
  }
  if (state == Job::RUNNING) record.running_since = clock_;

  job.set_state(state);
  job.set_reason_code(code);
  job.set_reason(reason);
  lemo::v1::StateChange& change = *AddEvent(record).mutable_state();
  change.set_from(from);
  change.set_to(state);
  change.set_reason_code(code);
  change.set_reason(reason);
  if (failure != nullptr) *change.mutable_failure() = *failure;
  if (!OnWorker(state) && !BeingChecked(state)) job.set_stop_request(Job::STOP_NONE);
  if (state == Job::SUCCEEDED || state == Job::FAILED || state == Job::CANCELLED) {
    *job.mutable_end_time() = ToTimestamp(now_);
    ReplaceCheckpoint(record, nullptr);
  }
}

void Core::Explain(JobRecord& record, Job::ReasonCode code, const std::string& reason) {
  Job& job = record.job;
  if (job.reason_code() == code && job.reason() == reason) return;
  const bool new_code = job.reason_code() != code;
  job.set_reason_code(code);
  job.set_reason(reason);
  std::vector<JobEvent>& events = Touch(record);
  const bool entered_now = !events.empty() && events.back().has_state();
  if (!entered_now && new_code) {
    lemo::v1::StateChange& change = *AddEvent(record).mutable_state();
    change.set_from(job.state());
    change.set_to(job.state());
  } else if (!entered_now) {
    return;
  }
  lemo::v1::StateChange& change = *Touch(record).back().mutable_state();
  change.set_reason_code(code);
  change.set_reason(reason);
}

// The reason is a stand-in: nearly always the same step tries to place the job and knows a better
// one.
void Core::Enqueue(JobRecord& record) {
  record.not_before = absl::InfinitePast();
  Enter(record, Job::QUEUED, Job::BEHIND_OTHERS, "waits for its turn in the queue");
}

void Core::Cancel(JobRecord& record) {
  Enter(record, Job::CANCELLED, Job::CANCELLED_BY_USER, "cancelled on request");
}

void Core::Pause(JobRecord& record) {
  Enter(record, Job::PAUSED, Job::PAUSED_BY_USER, "paused on request; goes on when resumed");
}

void Core::Fail(JobRecord& record, const Failure& failure) {
  *record.job.mutable_failure() = failure;
  Enter(record, Job::FAILED, Job::REASON_UNSPECIFIED,
        failure.message().empty() ? "failed" : failure.message(), &failure);
}

absl::Status Core::On(const Submitted& event) {
  const std::string name = event.record.job.name();
  auto [found, added] = jobs_.try_emplace(name, event.record);
  if (!added) return absl::AlreadyExistsError(absl::StrCat(name, " exists"));
  JobRecord& record = found->second;
  if (record.number == 0) record.number = last_number_ + 1;
  last_number_ = std::max(last_number_, record.number);
  record.job.mutable_progress()->set_eval_loss(std::numeric_limits<double>::quiet_NaN());
  const bool planned = record.job.spec().has_plan();
  Enter(record, planned ? Job::PLANNING : Job::VALIDATING, Job::CHECKING_DATA, "");
  Explain(record, Job::CHECKING_DATA, CheckText(record.job));
  effects_.push_back(StartValidation{record});
  return absl::OkStatus();
}

absl::Status Core::On(const Validated& event) {
  auto found = jobs_.find(event.job);
  // Cancelled meanwhile, or said twice.
  if (found == jobs_.end() || !BeingChecked(found->second.job.state())) {
    return absl::OkStatus();
  }
  JobRecord& record = found->second;
  if (event.failure.has_value()) {
    Fail(record, *event.failure);
    return absl::OkStatus();
  }
  if (event.contract.has_value()) {
    *record.job.mutable_contract() = *event.contract;
    NameBase(record, record.job.mutable_contract());
    ApplyContract(*event.contract, record.job.mutable_spec());
  } else if (record.job.state() == Job::PLANNING) {
    Failure failure;
    failure.set_kind(Failure::SYSTEM_ERROR);
    failure.set_message("was planned, and came without an offer");
    Fail(record, failure);
    return absl::OkStatus();
  }
  if (event.memory_bytes > 0 && !record.job.spec().resources().has_memory_bytes()) {
    record.job.mutable_spec()->mutable_resources()->set_memory_bytes(event.memory_bytes);
  }
  if (record.job.stop_request() == Job::STOP_PAUSE) {
    Pause(record);
  } else {
    Enqueue(record);
  }
  return absl::OkStatus();
}

absl::Status Core::On(const CancelRequested& event) {
  auto found = jobs_.find(event.job);
  if (found == jobs_.end()) return NotFound(event.job);
  JobRecord& record = found->second;
  if (record.job.stop_request() == Job::STOP_CANCEL) return absl::OkStatus();
  if (OnWorker(record.job.state())) {
    record.job.set_stop_request(Job::STOP_CANCEL);
    Touch(record);
    Explain(record, Job::STOPPING,
            absl::StrCat("is being cancelled; ", record.job.worker(), " ends its ranks"));
    SendStop(record);
    return absl::OkStatus();
  }
  if (BeingChecked(record.job.state())) effects_.push_back(StopValidation{event.job});
  Cancel(record);
  return absl::OkStatus();
}

absl::Status Core::On(const PauseRequested& event) {
  auto found = jobs_.find(event.job);
  if (found == jobs_.end()) return NotFound(event.job);
  JobRecord& record = found->second;
  Job& job = record.job;
  if (job.stop_request() == Job::STOP_CANCEL) return BeingCancelled(job);
  if (job.state() == Job::PAUSED || job.stop_request() == Job::STOP_PAUSE) return absl::OkStatus();
  if (job.state() == Job::QUEUED) {
    Pause(record);
    return absl::OkStatus();
  }
  job.set_stop_request(Job::STOP_PAUSE);
  Touch(record);
  if (BeingChecked(job.state())) {
    Explain(record, Job::CHECKING_DATA, absl::StrCat(CheckText(job), "; it will be paused then"));
    return absl::OkStatus();
  }
  Explain(record, Job::STOPPING, "is being paused: its ranks checkpoint and leave their devices");
  SendStop(record);
  return absl::OkStatus();
}

absl::Status Core::On(const ResumeRequested& event) {
  auto found = jobs_.find(event.job);
  if (found == jobs_.end()) return NotFound(event.job);
  JobRecord& record = found->second;
  Job& job = record.job;
  if (job.stop_request() == Job::STOP_CANCEL) return BeingCancelled(job);
  if (job.state() == Job::PAUSED) {
    Enqueue(record);
  } else if (job.stop_request() == Job::STOP_PAUSE) {
    job.set_stop_request(Job::STOP_NONE);
    Touch(record);
    if (BeingChecked(job.state())) {
      Explain(record, Job::CHECKING_DATA, CheckText(job));
    } else {
      // The ranks were already told; the job goes through the queue once more.
      Explain(record, Job::STOPPING, "its ranks checkpoint and end; it is queued again then");
    }
  }
  return absl::OkStatus();
}

}  // namespace lemo::coordinator
