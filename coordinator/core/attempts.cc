// Attempts: how they begin, what their agents tell, how they end.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/files.h"
#include "coordinator/core/core.h"
#include "coordinator/core/timestamp.h"

namespace lemo::coordinator {

using lemo::v1::AttemptEnded;
using lemo::v1::AttemptId;
using lemo::v1::AttemptSignal;
using lemo::v1::CoordinatorMessage;
using lemo::v1::Failure;
using lemo::v1::Job;

namespace {

constexpr int kDefaultRestartLimit = 5;
constexpr int64_t kSharedCheckpointBytes = int64_t{1} << 30;
constexpr double kDefaultBackoffSeconds = 1;
constexpr double kMaxBackoffSeconds = 300;

Failure SystemError(const std::string& message) {
  Failure failure;
  failure.set_kind(Failure::SYSTEM_ERROR);
  failure.set_message(message);
  return failure;
}

// Doubles with each restart; `restarts` counts from 1.
absl::Duration Backoff(const lemo::v1::RestartSpec& spec, int restarts) {
  double first = spec.has_backoff_seconds() ? spec.backoff_seconds() : kDefaultBackoffSeconds;
  if (!(first >= 0)) first = kDefaultBackoffSeconds;
  const double seconds = first * std::exp2(std::min(restarts - 1, 30));
  return absl::Seconds(std::min(seconds, kMaxBackoffSeconds));
}

CoordinatorMessage Signal(const AttemptId& id, AttemptSignal::Signal signal) {
  CoordinatorMessage message;
  *message.mutable_signal()->mutable_id() = id;
  message.mutable_signal()->set_signal(signal);
  return message;
}

CoordinatorMessage Forgotten(const AttemptId& id) {
  CoordinatorMessage message;
  *message.mutable_forgotten()->mutable_id() = id;
  return message;
}

double MeanKept(const lemo::v1::TokenSparsity& sparsity) {
  double sum = 0;
  for (const double kept : sparsity.attention_kept()) sum += kept;
  for (const double kept : sparsity.mlp_kept()) sum += kept;
  const int count = sparsity.attention_kept_size() + sparsity.mlp_kept_size();
  return count > 0 ? sum / count : 0;
}

void UpdateProgress(const lemo::v1::RunEvent& event, absl::Time now, Job& job) {
  lemo::v1::Progress& progress = *job.mutable_progress();
  switch (event.event_case()) {
    case lemo::v1::RunEvent::kPhase:
      progress.set_phase(event.phase().name());
      break;
    case lemo::v1::RunEvent::kStep:
      progress.set_step(event.step().step());
      progress.set_steps(event.step().steps());
      progress.set_loss(event.step().loss());
      progress.set_learning_rate(event.step().learning_rate());
      progress.set_grad_norm(event.step().grad_norm());
      progress.set_tokens_per_second(event.step().tokens_per_second());
      progress.set_step_seconds(event.step().seconds());
      progress.set_eta_seconds(event.step().eta_seconds());
      progress.set_peak_bytes(event.step().peak_bytes());
      *progress.mutable_peak() = event.step().peak();
      if (event.step().has_memory()) {
        *progress.mutable_memory() = event.step().memory();
      } else {
        progress.clear_memory();
      }
      if (event.step().has_sparsity()) progress.set_kept(MeanKept(event.step().sparsity()));
      break;
    case lemo::v1::RunEvent::kEval:
      progress.set_eval_loss(event.eval().loss());
      break;
    case lemo::v1::RunEvent::kCheckpoint:
      progress.set_checkpoint_step(event.checkpoint().step());
      // One that was only read is as old as it was.
      if (event.checkpoint().reason() != "resumed") {
        *progress.mutable_checkpoint_time() = ToTimestamp(now);
      }
      break;
    case lemo::v1::RunEvent::kResult:
      // A run that was stopped tells what it has so far; that is no result.
      if (!event.result().interrupted()) *job.mutable_result() = event.result();
      break;
    default:
      break;
  }
}

}  // namespace

AttemptId IdOf(const JobRecord& record) {
  AttemptId id;
  id.set_job(record.job.name());
  id.set_attempt(record.job.attempt());
  return id;
}

void Core::Start(JobRecord& record, const scheduler::Placement& placement) {
  Job& job = record.job;
  const std::string& worker = placement.parts.front().worker;
  job.set_worker(worker);
  job.clear_nodes();
  for (const scheduler::Part& part : placement.parts) {
    lemo::v1::GangNode& node = *job.add_nodes();
    node.set_worker(part.worker);
    node.set_host(workers_.at(part.worker).hello.host());
    for (const int device : part.devices) node.add_devices(device);
  }
  job.set_attempt(job.attempt() + 1);
  job.clear_result();
  // What the former attempt said of its pace is not true of this one.
  job.mutable_progress()->clear_phase();
  job.mutable_progress()->clear_eta_seconds();
  job.mutable_progress()->clear_tokens_per_second();
  job.mutable_progress()->clear_memory();
  job.clear_allotment();
  if (!job.has_start_time()) *job.mutable_start_time() = ToTimestamp(now_);
  record.attempt_sequence = 0;
  record.devices = placement.parts.front().devices;
  const int others = job.nodes_size() - 1;
  Enter(record, Job::STARTING, Job::REASON_UNSPECIFIED,
        others == 0 ? absl::StrCat(worker, " fetches its files and starts its ranks")
                    : absl::StrCat(worker, " and ", others, others == 1 ? " other" : " others",
                                   " fetch its files and start its ", RanksOf(record), " ranks"));
  for (const lemo::v1::GangNode& node : job.nodes()) SendAssignment(record, node.worker());
}

// Without the secret nobody makes one, and one tells nothing of another.
std::string Core::GangToken(const AttemptId& id) const {
  const std::string& secret = options_.gang_secret;
  return Sha256Hex(
      absl::StrCat(secret, Sha256Hex(absl::StrCat(secret, id.job(), " ", id.attempt()))));
}

void Core::SendAssignment(const JobRecord& record, const std::string& worker) {
  CoordinatorMessage message;
  lemo::v1::Assignment& assignment = *message.mutable_assign();
  *assignment.mutable_id() = IdOf(record);
  *assignment.mutable_run() = record.job.spec().run();
  *assignment.mutable_limits() = record.job.spec().limits();
  for (const lemo::v1::GangNode& node : record.job.nodes()) {
    if (node.worker() == worker) *assignment.mutable_devices() = node.devices();
    if (record.job.nodes_size() == 1) break;
    lemo::v1::AssignedNode& assigned = *assignment.add_nodes();
    assigned.set_worker(node.worker());
    assigned.set_ranks(node.devices_size());
    *assigned.mutable_endpoint() = workers_.at(node.worker()).hello.endpoint();
  }
  if (record.job.nodes_size() > 1) assignment.set_gang_token(GangToken(assignment.id()));
  assignment.set_ranks(RanksOf(record));
  assignment.set_contract_bytes(record.job.contract().memory_bytes());
  for (const lemo::v1::InputFile& file : record.files) *assignment.add_files() = file;
  assignment.set_model_path(record.model_path);
  assignment.set_model_fingerprint(record.model_fingerprint);
  for (const lemo::v1::ModelFile& file : record.model_files) *assignment.add_model_files() = file;
  assignment.set_run_seconds_used(record.run_seconds_used);
  if (record.job.has_checkpoint()) *assignment.mutable_checkpoint() = record.job.checkpoint();
  const lemo::v1::RestartSpec& restart = record.job.spec().restart();
  assignment.set_shared_checkpoint_bytes(restart.has_shared_checkpoint_bytes()
                                             ? restart.shared_checkpoint_bytes()
                                             : kSharedCheckpointBytes);
  SendTo(worker, std::move(message));
}

void Core::SendStop(const JobRecord& record) {
  if (record.job.stop_request() != Job::STOP_CANCEL) {
    SendTo(record.job.worker(), Signal(IdOf(record), AttemptSignal::CHECKPOINT_AND_STOP));
    return;
  }
  for (const lemo::v1::GangNode& node : record.job.nodes()) SendKill(record, node.worker());
}

void Core::SendKill(const JobRecord& record, const std::string& worker) {
  SendTo(worker, Signal(IdOf(record), AttemptSignal::KILL));
}

JobRecord* Core::Current(const AttemptId& id, const std::string& worker) {
  auto found = jobs_.find(id.job());
  if (found == jobs_.end()) return nullptr;
  const Job& job = found->second.job;
  const bool current = (job.state() == Job::STARTING || job.state() == Job::RUNNING) &&
                       job.attempt() == id.attempt() &&
                       std::any_of(job.nodes().begin(), job.nodes().end(),
                                   [&](const auto& node) { return node.worker() == worker; });
  return current ? &found->second : nullptr;
}

JobRecord* Core::CurrentOfLead(const AttemptId& id, const std::string& worker) {
  JobRecord* record = Current(id, worker);
  return record != nullptr && record->job.worker() == worker ? record : nullptr;
}

void Core::BeginRunning(JobRecord& record) {
  if (record.job.state() != Job::STARTING) return;
  if (record.job.reason_code() == Job::STOPPING) {
    Enter(record, Job::RUNNING, Job::STOPPING, std::string(record.job.reason()));
  } else {
    Enter(record, Job::RUNNING, Job::REASON_UNSPECIFIED,
          record.job.nodes_size() == 1
              ? absl::StrCat("runs on ", record.job.worker())
              : absl::StrCat(RanksOf(record), " ranks run on ", record.job.nodes_size(),
                             " workers, led by ", record.job.worker()));
  }
}

void Core::OnStarted(const std::string& worker, const lemo::v1::AttemptStarted& started) {
  JobRecord* record = CurrentOfLead(started.id(), worker);
  if (record == nullptr) {
    SendTo(worker, Signal(started.id(), AttemptSignal::KILL));
    return;
  }
  BeginRunning(*record);
}

void Core::OnEvents(const std::string& worker, const lemo::v1::AttemptEvents& events) {
  const int64_t first = events.first_sequence();
  const int64_t count = events.events_size();
  JobRecord* record = CurrentOfLead(events.id(), worker);
  int64_t through = 0;
  if (record == nullptr) {
    // Dropped, and acknowledged so that the agent does not keep them.
    if (first >= 1 && first <= std::numeric_limits<int64_t>::max() - count) {
      through = first + count - 1;
    }
    SendTo(worker, Signal(events.id(), AttemptSignal::KILL));
  } else {
    const int64_t stored = record->attempt_sequence;
    if (first < 1 || first > stored + 1) return;  // a gap: the agent sends what is missing first
    if (first + (count - 1) > stored) BeginRunning(*record);
    for (int64_t i = stored + 1 - first; i < count; ++i) {
      const lemo::v1::RunEvent& event = events.events(static_cast<int>(i));
      *AddEvent(*record).mutable_run() = event;
      const bool could_be_cut = CanBeCut(record->job);
      UpdateProgress(event, now_, record->job);
      if (event.has_step()) OnMemory(*record, could_be_cut);
      ++record->attempt_sequence;
    }
    through = record->attempt_sequence;
  }
  CoordinatorMessage message;
  *message.mutable_acknowledged()->mutable_id() = events.id();
  message.mutable_acknowledged()->set_through_sequence(through);
  SendTo(worker, std::move(message));
}

void Core::OnLog(const std::string& worker, const lemo::v1::AttemptLog& log) {
  const JobRecord* record = Current(log.id(), worker);
  if (record == nullptr || log.chunk().offset() < 0) return;
  int first = 0;  // rank of the node
  for (const lemo::v1::GangNode& node : record->job.nodes()) {
    if (node.worker() == worker) {
      if (log.chunk().rank() < first || log.chunk().rank() >= first + node.devices_size()) return;
      break;
    }
    first += node.devices_size();
  }
  AppendLog append{log.id().job(), log.chunk()};
  append.chunk.set_attempt(log.id().attempt());
  effects_.push_back(std::move(append));
}

void Core::OnCheckpoint(const std::string& worker, const lemo::v1::AttemptCheckpoint& message) {
  JobRecord* record = CurrentOfLead(message.id(), worker);
  // The agent repeats what it does not know to have arrived.
  if (record == nullptr || message.checkpoint().files().empty() ||
      message.checkpoint().step() <= record->job.checkpoint().step()) {
    return;
  }
  ReplaceCheckpoint(*record, &message.checkpoint());
}

void Core::ReplaceCheckpoint(JobRecord& record, const lemo::v1::JobCheckpoint* checkpoint) {
  const lemo::v1::JobCheckpoint former = record.job.checkpoint();
  if (checkpoint != nullptr) {
    *record.job.mutable_checkpoint() = *checkpoint;
  } else {
    record.job.clear_checkpoint();
  }
  Touch(record);
  DropContent drop;
  for (const auto& file : former.files()) drop.sha256.push_back(file.sha256());
  if (!drop.sha256.empty()) effects_.push_back(std::move(drop));
}

void Core::OnEnded(const std::string& worker, const AttemptEnded& ended) {
  JobRecord* record = Current(ended.id(), worker);
  if (record == nullptr) {
    SendTo(worker, Forgotten(ended.id()));
    return;
  }
  // Some of its events are under way; the agent repeats the end.
  if (record->job.worker() == worker && ended.last_sequence() > record->attempt_sequence) return;
  EndOn(*record, worker, ended);
}

void Core::EndOn(JobRecord& record, const std::string& worker, const AttemptEnded& ended) {
  const bool lead = record.job.worker() == worker;
  Ending& ending = endings_[record.job.name()];
  ending.told.insert(worker);
  if (lead && !std::exchange(ending.charged, true) && ended.run_seconds() > 0 &&
      std::isfinite(ended.run_seconds())) {
    record.run_seconds_used += ended.run_seconds();
  }
  if (!lead && ended.outcome() == AttemptEnded::SUCCEEDED) {
    AttemptEnded fault;
    fault.set_outcome(AttemptEnded::FAILED);
    *fault.mutable_failure() =
        SystemError(absl::StrCat(worker, " told of success, though it does not lead the ranks"));
    OverOn(record, worker, fault);
  } else if (!lead && ended.has_failure()) {
    AttemptEnded fault = ended;  // whoever reads of it looks at the lead first
    fault.mutable_failure()->set_message(absl::StrCat(worker, ": ", ended.failure().message()));
    OverOn(record, worker, fault);
  } else {
    OverOn(record, worker, ended);
  }
}

void Core::EndLost(JobRecord& record, const std::string& worker, const std::string& message) {
  AttemptEnded lost;
  lost.set_outcome(AttemptEnded::FAILED);
  *lost.mutable_failure() = SystemError(message);
  lost.set_last_sequence(record.attempt_sequence);
  Ending& ending = endings_[record.job.name()];
  if (!std::exchange(ending.charged, true)) ChargeLostTime(record);
  OverOn(record, worker, lost);
}

void Core::OverOn(JobRecord& record, const std::string& worker, const AttemptEnded& ended) {
  Ending& ending = endings_[record.job.name()];
  ending.over.insert(worker);
  if (ending.worker.empty()) {
    ending.worker = worker;
    ending.end = ended;
    for (const lemo::v1::GangNode& node : record.job.nodes()) {
      if (node.worker() != worker) SendKill(record, node.worker());
    }
  }
  ConcludeIfOver(record);
}

void Core::ConcludeIfOver(JobRecord& record) {
  const auto found = endings_.find(record.job.name());
  std::vector<std::string> waits;
  for (const lemo::v1::GangNode& node : record.job.nodes()) {
    if (found->second.over.count(node.worker()) == 0) waits.push_back(node.worker());
  }
  if (!waits.empty()) {
    Explain(record, record.job.reason_code(),
            absl::StrCat("ends: ", found->second.worker, " has nothing left of it; waits for ",
                         absl::StrJoin(waits, ", ")));
    return;
  }
  const Ending ending = std::move(found->second);
  endings_.erase(found);
  const AttemptId id = IdOf(record);
  End(record, ending.end, ending.worker);
  for (const std::string& worker : ending.told) SendTo(worker, Forgotten(id));
}

void Core::End(JobRecord& record, const AttemptEnded& ended, const std::string& worker) {
  Job& job = record.job;
  if (job.stop_request() == Job::STOP_CANCEL) {
    Cancel(record);
    return;
  }
  if (worker == job.worker() && ended.last_sequence() < record.attempt_sequence) {
    Restart(record, absl::StrCat(job.worker(), " lost events of the run: it ended with ",
                                 ended.last_sequence(), ", stored are ", record.attempt_sequence));
    return;
  }
  switch (ended.outcome()) {
    case AttemptEnded::SUCCEEDED:
      if (!job.has_result() || ended.artifacts().empty()) {
        Restart(record, absl::StrCat(job.worker(), " told of success without a ",
                                     job.has_result() ? "file" : "result"));
        return;
      }
      *job.mutable_artifacts() = ended.artifacts();
      Enter(record, Job::SUCCEEDED, Job::REASON_UNSPECIFIED, "its result is stored");
      return;
    case AttemptEnded::STOPPED:
      Stopped(record);
      return;
    case AttemptEnded::FAILED:
      switch (ended.failure().kind()) {
        case Failure::OUT_OF_MEMORY:
          // Not by what it was promised: it goes on with all of that.
          if (job.has_allotment()) {
            Restart(record, ended.failure());
            return;
          }
          [[fallthrough]];
        case Failure::USER_ERROR:
        case Failure::LIMIT_EXCEEDED:
          Fail(record, ended.failure());
          return;
        default:
          Restart(record, ended.failure());
          return;
      }
    default:
      Restart(record, absl::StrCat(worker, " did not tell how the run ended"));
  }
}

void Core::Stopped(JobRecord& record) {
  if (record.job.stop_request() == Job::STOP_CANCEL) {
    Cancel(record);
  } else if (record.job.stop_request() == Job::STOP_PAUSE) {
    Pause(record);
  } else {
    const bool asked = record.job.reason_code() == Job::STOPPING;
    Enqueue(record);
    // An agent that stops jobs unasked would otherwise get them back at once, for ever.
    if (!asked) {
      record.not_before = clock_ + Backoff(record.job.spec().restart(), 1);
      Explain(record, Job::BACKING_OFF,
              absl::StrCat(record.job.worker(), " stopped the run; it is placed again soon"));
    }
  }
}

void Core::ChargeLostTime(JobRecord& record) {
  if (record.job.state() != Job::RUNNING || record.running_since == absl::InfinitePast()) return;
  const absl::Duration ran = std::max(clock_ - record.running_since, absl::ZeroDuration());
  record.run_seconds_used += absl::ToDoubleSeconds(ran);
}

void Core::Restart(JobRecord& record, const std::string& message) {
  Restart(record, SystemError(message));
}

void Core::Restart(JobRecord& record, const Failure& failure) {
  Job& job = record.job;
  job.clear_result();
  if (job.stop_request() != Job::STOP_NONE) {
    Stopped(record);
    return;
  }
  const lemo::v1::RestartSpec& spec = job.spec().restart();
  const int limit = spec.has_limit() ? std::max(spec.limit(), 0) : kDefaultRestartLimit;
  Failure cause = failure;
  cause.set_kind(Failure::SYSTEM_ERROR);
  if (cause.message().empty())
    cause.set_message(absl::StrCat("the run ended by a fault on ", job.worker()));
  const lemo::v1::LimitSpec& limits = job.spec().limits();
  if (limits.has_run_seconds() && record.run_seconds_used >= limits.run_seconds()) {
    cause.set_kind(Failure::LIMIT_EXCEEDED);
    cause.set_message(absl::StrCat("limits.run_seconds: ran for ",
                                   std::ceil(record.run_seconds_used), " s, ", limits.run_seconds(),
                                   " s are allowed; the last attempt ended so: ", cause.message()));
    Fail(record, cause);
    return;
  }
  if (job.restarts() >= limit) {
    if (limit > 0) {
      cause.set_message(absl::StrCat(cause.message(), " (after ", job.restarts(),
                                     job.restarts() == 1 ? " restart)" : " restarts)"));
    }
    Fail(record, cause);
    return;
  }
  job.set_restarts(job.restarts() + 1);
  const absl::Duration backoff = Backoff(spec, job.restarts());
  record.not_before = clock_ + backoff;
  Enter(record, Job::QUEUED, Job::BACKING_OFF,
        absl::StrCat("restart ", job.restarts(), " of ", limit, " follows after ",
                     absl::FormatDuration(backoff), ": ", cause.message()),
        &cause);
}

}  // namespace lemo::coordinator
