// Workers: their sessions, leases, cordons and drains.
#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "coordinator/core/core.h"
#include "coordinator/core/planned_devices.h"
#include "coordinator/core/timestamp.h"

namespace lemo::coordinator {

using lemo::v1::AgentMessage;
using lemo::v1::CoordinatorMessage;
using lemo::v1::Hello;
using lemo::v1::Job;

namespace {

// A lost worker without jobs stays in lists for this long.
constexpr absl::Duration kRememberLost = absl::Minutes(10);

absl::Status CheckHello(const Hello& hello) {
  if (!absl::StartsWith(hello.worker(), "workers/") || hello.worker().size() == 8) {
    return absl::InvalidArgumentError("hello.worker must be workers/{id}");
  }
  std::set<int> indices;
  for (const lemo::v1::Device& device : hello.devices()) {
    if (!indices.insert(device.index()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("hello.devices: index ", device.index(), " is there twice"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

void Core::SendTo(const std::string& worker, CoordinatorMessage message) {
  const int64_t session = workers_.at(worker).session;
  if (session != 0) effects_.push_back(Send{session, std::move(message)});
}

void Core::CloseSession(int64_t session, absl::Status reason) {
  auto found = sessions_.find(session);
  if (found != sessions_.end()) {
    workers_.at(found->second).session = 0;
    sessions_.erase(found);
    RequestPlacement();
  }
  effects_.push_back(Close{session, std::move(reason)});
}

void Core::Renew(WorkerEntry& worker) {
  if (clock_ >= worker.lease_end) RequestPlacement();
  worker.lease_end = clock_ + options_.lease;
  worker.lost = false;
  lease_check_at_ = std::min(lease_check_at_, worker.lease_end);
}

absl::Status Core::On(const AgentConnected& event) {
  if (absl::Status fault = CheckHello(event.hello); !fault.ok()) {
    CloseSession(event.session, std::move(fault));
    return absl::OkStatus();
  }
  if (sessions_.count(event.session) > 0) {
    CloseSession(event.session, absl::InvalidArgumentError("a second hello on one stream"));
    return absl::OkStatus();
  }
  const std::string& name = event.hello.worker();
  WorkerEntry& worker = workers_[name];
  if (worker.session != 0) {
    CloseSession(worker.session, absl::AbortedError(absl::StrCat("a newer stream of ", name)));
  }
  worker.session = event.session;
  worker.hello = event.hello;
  for (lemo::v1::Device& device : *worker.hello.mutable_devices()) {
    device.set_type(DeviceTypeOf(device));
  }
  worker.leaving = false;
  sessions_[event.session] = name;
  Renew(worker);
  Attach(name, worker);
  worker.hello.clear_attempts();
  placement_from_ = std::min(placement_from_, clock_);
  RequestPlacement();
  return absl::OkStatus();
}

// Welcomes the agent, and settles what it and the coordinator think that it runs. What it does not
// name does not run there: its assignment came by the former stream or not at all.
void Core::Attach(const std::string& name, WorkerEntry& worker) {
  CoordinatorMessage message;
  lemo::v1::Welcome& welcome = *message.mutable_welcome();
  welcome.set_lease_seconds(absl::ToDoubleSeconds(options_.lease));
  welcome.set_heartbeat_seconds(absl::ToDoubleSeconds(options_.heartbeat));
  std::set<std::string> reported;
  for (const lemo::v1::AttemptReport& report : worker.hello.attempts()) {
    const JobRecord* record = Current(report.id(), name);
    if (record == nullptr || !reported.insert(report.id().job()).second) continue;
    lemo::v1::EventsAcknowledged& attempt = *welcome.add_attempts();
    *attempt.mutable_id() = report.id();
    attempt.set_through_sequence(record->attempt_sequence);
  }
  SendTo(name, std::move(message));

  const std::set<std::string> jobs = worker.jobs;  // which ends of attempts change
  for (const std::string& job : jobs) {
    JobRecord& record = jobs_.at(job);
    const bool stopping = record.job.reason_code() == Job::STOPPING;
    if (const auto ending = endings_.find(job); ending != endings_.end()) {
      if (reported.count(job) == 0) {
        OverOn(record, name, {});
      } else {
        // Also when it was taken for lost: what it has of the attempt it will tell the end of.
        ending->second.over.erase(name);
        SendKill(record, name);
      }
    } else if (reported.count(job) > 0) {
      if (record.job.has_allotment()) SendBudget(record);
      if (stopping) SendStop(record);
    } else if (record.job.state() == Job::RUNNING) {
      EndLost(record, name, absl::StrCat(name, " no longer knows of the run"));
    } else if (stopping) {
      lemo::v1::AttemptEnded nothing;
      nothing.set_outcome(lemo::v1::AttemptEnded::STOPPED);
      nothing.set_last_sequence(record.attempt_sequence);
      OverOn(record, name, nothing);
    } else {
      SendAssignment(record, name);
    }
  }
}

absl::Status Core::On(const AgentSaid& event) {
  auto found = sessions_.find(event.session);
  if (found == sessions_.end()) return absl::OkStatus();  // of a stream that was closed
  const std::string worker = found->second;
  const AgentMessage& message = event.message;
  switch (message.message_case()) {
    case AgentMessage::kHello:
      CloseSession(event.session, absl::InvalidArgumentError("a second hello on one stream"));
      break;
    case AgentMessage::kHeartbeat: {
      Renew(workers_.at(worker));
      CoordinatorMessage answer;
      answer.mutable_lease()->set_number(message.heartbeat().number());
      SendTo(worker, std::move(answer));
      break;
    }
    case AgentMessage::kEvents:
      OnEvents(worker, message.events());
      break;
    case AgentMessage::kCheckpoint:
      OnCheckpoint(worker, message.checkpoint());
      break;
    case AgentMessage::kStarted:
      OnStarted(worker, message.started());
      break;
    case AgentMessage::kEnded:
      OnEnded(worker, message.ended());
      break;
    case AgentMessage::kLog:
      OnLog(worker, message.log());
      break;
    case AgentMessage::kDrain:
      workers_.at(worker).leaving = true;
      StopJobsOf(workers_.at(worker));
      RequestPlacement();
      break;
    case AgentMessage::MESSAGE_NOT_SET:
      break;
  }
  return absl::OkStatus();
}

absl::Status Core::On(const AgentDisconnected& event) {
  auto found = sessions_.find(event.session);
  if (found == sessions_.end()) return absl::OkStatus();
  workers_.at(found->second).session = 0;
  sessions_.erase(found);
  RequestPlacement();
  return absl::OkStatus();
}

absl::Status Core::On(const CordonRequested& event) {
  auto found = workers_.find(event.worker);
  const bool was = cordoned_.count(event.worker) > 0;
  // The cordon of a worker that has gone can be taken back.
  if (found == workers_.end() && !was) {
    return absl::NotFoundError(absl::StrCat(event.worker, " does not exist"));
  }
  if (!event.cordon && found != workers_.end()) found->second.draining = false;
  if (was != event.cordon) {
    if (event.cordon) {
      cordoned_.insert(event.worker);
    } else {
      cordoned_.erase(event.worker);
    }
    effects_.push_back(PersistWorker{event.worker, event.cordon});
  }
  RequestPlacement();
  return absl::OkStatus();
}

absl::Status Core::On(const DrainRequested& event) {
  auto found = workers_.find(event.worker);
  if (found == workers_.end()) {
    return absl::NotFoundError(absl::StrCat(event.worker, " does not exist"));
  }
  if (cordoned_.insert(event.worker).second) {
    effects_.push_back(PersistWorker{event.worker, true});
  }
  found->second.draining = true;
  StopJobsOf(found->second);
  RequestPlacement();
  return absl::OkStatus();
}

// The stored reason STOPPING outlives this process: the signal is repeated when the agent dials in.
void Core::StopJobsOf(const WorkerEntry& worker) {
  for (const std::string& job : worker.jobs) {
    JobRecord& record = jobs_.at(job);
    if (record.job.reason_code() == Job::STOPPING) continue;
    Explain(record, Job::STOPPING,
            absl::StrCat(worker.hello.worker(),
                         " is being drained: the ranks checkpoint and the job is queued again"));
    SendStop(record);
  }
}

absl::Status Core::On(const Tick&) { return absl::OkStatus(); }

void Core::CheckLeases() {
  if (clock_ < lease_check_at_) return;
  lease_check_at_ = absl::InfiniteFuture();
  for (auto entry = workers_.begin(); entry != workers_.end();) {
    WorkerEntry& worker = entry->second;
    const absl::Time fence = worker.lease_end + options_.fence_margin;
    absl::Time next = worker.lease_end;
    if (clock_ >= fence + kRememberLost && worker.jobs.empty()) {
      entry = workers_.erase(entry);
      continue;
    }
    if (clock_ >= fence) {
      if (!worker.lost) Lose(entry->first, worker);
      next = fence + kRememberLost;
    } else if (clock_ >= worker.lease_end) {
      RequestPlacement();  // it is out of reach for new jobs already
      next = fence;
    }
    lease_check_at_ = std::min(lease_check_at_, next);
    ++entry;
  }
}

void Core::Lose(const std::string& name, WorkerEntry& worker) {
  worker.lost = true;
  // It may be alive and slow. It has to dial in anew, and hears then what is no longer its own.
  if (worker.session != 0) {
    CloseSession(worker.session,
                 absl::AbortedError(absl::StrCat("the lease of ", name, " ran out")));
  }
  const std::set<std::string> jobs = worker.jobs;
  for (const std::string& job : jobs) {
    EndLost(jobs_.at(job), name,
            absl::StrCat(name, " was lost: it has not been heard of for ",
                         absl::FormatDuration(options_.lease)));
  }
  RequestPlacement();
}

bool Core::AcceptsJobs(const std::string& name, const WorkerEntry& worker) const {
  return worker.session != 0 && clock_ < worker.lease_end && !worker.draining && !worker.leaving &&
         cordoned_.count(name) == 0;
}

std::vector<const lemo::v1::Hello*> Core::Hellos() const {
  std::vector<const lemo::v1::Hello*> hellos;
  for (const auto& [name, entry] : workers_) hellos.push_back(&entry.hello);
  return hellos;
}

std::vector<lemo::v1::Worker> Core::Workers() const {
  std::vector<lemo::v1::Worker> workers;
  for (const auto& [name, entry] : workers_) {
    lemo::v1::Worker& worker = workers.emplace_back();
    worker.set_name(name);
    worker.set_host(entry.hello.host());
    *worker.mutable_devices() = entry.hello.devices();
    worker.set_host_memory_bytes(entry.hello.host_memory_bytes());
    worker.set_version(entry.hello.version());
    worker.set_address(entry.hello.endpoint().address());
    *worker.mutable_lease_expire_time() = ToTimestamp(now_ + (entry.lease_end - clock_));
    for (const std::string& job : entry.jobs) worker.add_jobs(job);
    worker.set_state(entry.lost                        ? lemo::v1::Worker::LOST
                     : entry.draining || entry.leaving ? lemo::v1::Worker::DRAINING
                     : cordoned_.count(name) > 0       ? lemo::v1::Worker::CORDONED
                                                       : lemo::v1::Worker::READY);
  }
  return workers;
}

}  // namespace lemo::coordinator
