#include "worker/agent/attempt.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/message_json.h"
#include "common/status_macros.h"
#include "worker/agent/process_info.h"
#include "worker/agent/result_upload.h"

namespace lemo::agent {
namespace {

namespace fs = std::filesystem;
using lemo::v1::AttemptEnded;

constexpr int64_t kLogTailBytes = 4 << 10;
constexpr auto kLimitsPause = std::chrono::seconds(2);
constexpr auto kLimitsSlack = std::chrono::milliseconds(20);
constexpr auto kSweepPause = std::chrono::milliseconds(10);
// At most so many reads of the event pipe in one turn of the loop, so that one job's flood does not
// starve the lease.
constexpr int kReadsPerTurn = 16;

double UnixSeconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// Whether the directory is one of the model roots or lies under one. By its name: what a link there
// leads to is the operator's choice.
bool UnderRoots(const fs::path& path, const std::vector<fs::path>& roots) {
  const fs::path plain = path.lexically_normal();
  if (!plain.is_absolute()) return false;
  return std::any_of(roots.begin(), roots.end(), [&](const fs::path& root) {
    const fs::path relative = plain.lexically_relative(root);
    return !relative.empty() && *relative.begin() != "..";
  });
}

// Whether no later attempt of the job can go on from what this one made.
bool IsFinal(const AttemptEnded& ended) {
  return ended.outcome() == AttemptEnded::SUCCEEDED ||
         (ended.outcome() == AttemptEnded::FAILED &&
          ended.failure().kind() != lemo::v1::Failure::SYSTEM_ERROR);
}

AttemptEnded Failed(lemo::v1::Failure failure) {
  AttemptEnded ended;
  ended.set_outcome(AttemptEnded::FAILED);
  *ended.mutable_failure() = std::move(failure);
  return ended;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Attempt>> Attempt::Accept(const AttemptContext& context,
                                                         const lemo::v1::Assignment& assignment,
                                                         const fs::path& directory) {
  LEMO_RETURN_IF_ERROR(MakeDirectories(directory));
  AttemptJournal journal(directory, assignment.id().attempt());
  journal.Remove();  // a former agent's, of an attempt that the coordinator never saw
  LEMO_RETURN_IF_ERROR(MakeDirectories(directory));
  AttemptRecord record;
  record.id = assignment.id();
  record.boot_id = BootId();
  record.start_unix_seconds = UnixSeconds();
  LEMO_RETURN_IF_ERROR(journal.Write(record));
  LEMO_ASSIGN_OR_RETURN(Spool spool, Spool::Open(journal.spool()));
  std::unique_ptr<Attempt> attempt(
      new Attempt(context, std::move(record), std::move(journal), std::move(spool)));
  attempt->assignment_ = assignment;
  if (assignment.ranks() > 1) {
    attempt->End(
        Failed(SystemError(absl::StrCat("resources.ranks: this worker runs gangs of one "
                                        "rank only, the job wants ",
                                        assignment.ranks()))));
  } else {
    attempt->StartFetching();
  }
  return attempt;
}

absl::StatusOr<std::unique_ptr<Attempt>> Attempt::Recover(const AttemptContext& context,
                                                          const fs::path& directory,
                                                          BootClock::duration patience) {
  LEMO_ASSIGN_OR_RETURN(AttemptRecord record, AttemptJournal::Read(directory));
  if (record.leader > 0) EndLeftover(record.leader, record.start_ticks, patience);
  AttemptJournal journal(directory, record.id.attempt());
  std::error_code error;
  const auto last_write = fs::last_write_time(journal.spool(), error);
  LEMO_ASSIGN_OR_RETURN(Spool spool, Spool::Open(journal.spool()));
  if (!record.succeeded && !error) {
    // Of the run nothing is known but its last event.
    const auto since = fs::file_time_type::clock::now() - last_write;
    const double ago = std::chrono::duration<double>(since).count();
    record.run_seconds = std::max(0.0, UnixSeconds() - ago - record.start_unix_seconds);
  }
  std::unique_ptr<Attempt> attempt(
      new Attempt(context, std::move(record), std::move(journal), std::move(spool)));
  if (auto ended = attempt->journal_.ReadEnded()) {
    attempt->final_ = IsFinal(*ended);
    attempt->outbox_.SetEnded(*std::move(ended));
  } else if (attempt->record_.succeeded) {
    attempt->StartHandingOver();
  } else {
    AttemptEnded fault = Failed(SystemError("the agent was restarted"));
    fault.mutable_failure()->set_log_tail(LastBytes(attempt->journal_.log(0), kLogTailBytes));
    attempt->End(std::move(fault));
  }
  return attempt;
}

Attempt::Attempt(const AttemptContext& context, AttemptRecord record, AttemptJournal journal,
                 Spool spool)
    : context_(context),
      record_(std::move(record)),
      journal_(std::move(journal)),
      outbox_(record_.id, std::move(spool),
              LogTail(journal_.log(0), /*rank=*/0, record_.id.attempt())) {}

Attempt::~Attempt() {
  DropGang();
  if (transfer_ != nullptr) {
    transfer_->canceller.Cancel();
    transfer_->thread.join();
  }
}

void Attempt::StartFetching() {
  transfer_ = std::make_unique<Transfer>();
  Transfer* transfer = transfer_.get();
  const std::vector<lemo::v1::InputFile> files(assignment_.files().begin(),
                                               assignment_.files().end());
  transfer->thread = std::thread([transfer, files, cache = context_.cache, waker = context_.waker] {
    for (const lemo::v1::InputFile& file : files) {
      absl::StatusOr<fs::path> path = cache->Fetch(file, &transfer->canceller);
      if (!path.ok()) {
        transfer->status = path.status();
        break;
      }
      transfer->files[file.name()] = path->string();
    }
    transfer->done = true;
    waker->Wake();
  });
}

void Attempt::StartHandingOver() {
  handing_over_ = true;
  transfer_ = std::make_unique<Transfer>();
  Transfer* transfer = transfer_.get();
  transfer->thread = std::thread([transfer, id = record_.id, out = journal_.out(),
                                  stub = context_.coordinator, waker = context_.waker] {
    auto artifacts = UploadResult(id, out, stub, &transfer->canceller);
    transfer->status = artifacts.status();
    if (artifacts.ok()) transfer->artifacts = *std::move(artifacts);
    transfer->done = true;
    waker->Wake();
  });
}

void Attempt::FinishTransfer() {
  transfer_->thread.join();
  const std::unique_ptr<Transfer> transfer = std::move(transfer_);
  if (forgotten_) return;
  if (stop_before_start_) {
    AttemptEnded ended;
    ended.set_outcome(AttemptEnded::STOPPED);
    End(std::move(ended));
  } else if (end_.failure && !handing_over_) {
    End(Failed(*end_.failure));
  } else if (!transfer->status.ok()) {
    End(Failed(SystemError(std::string(transfer->status.message()))));
  } else if (handing_over_) {
    AttemptEnded ended;
    ended.set_outcome(AttemptEnded::SUCCEEDED);
    for (lemo::v1::Artifact& artifact : transfer->artifacts) {
      *ended.add_artifacts() = std::move(artifact);
    }
    End(std::move(ended));
  } else if (absl::Status status = StartGang(transfer->files); !status.ok()) {
    End(Failed(SystemError(std::string(status.message()))));
  }
}

absl::Status Attempt::StartGang(const std::map<std::string, std::string>& files) {
  const int index = assignment_.devices_size() == 1 ? assignment_.devices(0) : -1;
  if (index < 0 || index >= static_cast<int>(context_.devices->size())) {
    return absl::FailedPreconditionError(
        absl::StrCat("devices: ", assignment_.devices_size(), " devices, the first ", index,
                     "; this worker has ", context_.devices->size()));
  }
  if (!UnderRoots(assignment_.model_path(), context_.options->model_roots)) {
    return absl::FailedPreconditionError(absl::StrCat("model_path: ", assignment_.model_path(),
                                                      " is under no model root of this worker"));
  }
  const LocalPaths paths{.files = files,
                         .out = journal_.out().string(),
                         .device = (*context_.devices)[static_cast<size_t>(index)].train_name};
  LEMO_ASSIGN_OR_RETURN(const lemo::v1::RunSpec spec, MakeRankSpec(assignment_, paths));
  LEMO_RETURN_IF_ERROR(WriteFileAtomic(journal_.spec(), MessageToJson(spec, {}).dump(1) + "\n"));
  names_ = PathNames(assignment_, paths);
  GangOptions options;
  options.command = {context_.options->train.string(),
                     journal_.spec().string(),
                     "--resume",
                     "auto",
                     "--events",
                     "fd:3"};
  options.log = journal_.log(0);
  // Jobs that share the CPU get a share of its cores each, unless the operator has said otherwise.
  if (const int sharing = context_.options->cpu_devices;
      paths.device == "cpu" && sharing > 1 && ::getenv("OMP_NUM_THREADS") == nullptr) {
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    options.environment.push_back(absl::StrCat("OMP_NUM_THREADS=", std::max(1, cores / sharing)));
    options.environment.push_back(
        "OMP_WAIT_POLICY=passive");  // spinning would take the others' share
  }
  LEMO_ASSIGN_OR_RETURN(gang_, Gang::Start(options));
  started_at_ = BootClock::now();
  limits_due_ = started_at_;
  record_.leader = gang_->leader();
  record_.start_ticks = StartTicks(gang_->leader()).value_or(0);
  record_.start_unix_seconds = UnixSeconds();
  outbox_.SetStarted();
  // A gang that nobody would find after this agent's death must not live.
  absl::Status status = journal_.Write(record_);
  if (status.ok() && context_.watchdog != nullptr) {
    status = context_.watchdog->Watch(gang_->leader());
  }
  if (!status.ok()) {
    EndGang(SystemError(std::string(status.message())));
  }
  return absl::OkStatus();
}

void Attempt::AddPollFds(std::vector<pollfd>* fds) const {
  if (gang_ == nullptr) return;
  if (gang_->exit_fd() >= 0) fds->push_back({.fd = gang_->exit_fd(), .events = POLLIN});
  if (!events_over_) fds->push_back({.fd = gang_->events_fd(), .events = POLLIN});
}

Instant Attempt::Advance(Instant now) {
  if (transfer_ != nullptr && transfer_->done) FinishTransfer();
  if (gang_ == nullptr) return kNever;
  // Asked first: what the ranks wrote before they were gone is then in the pipe.
  const bool gone = gang_->Poll(now);
  for (int i = 0; i < kReadsPerTurn && !events_over_; ++i) {
    const int64_t before = outbox_.last_sequence();
    ReadEvents();
    if (outbox_.last_sequence() == before && !gone) break;
  }
  if (gone && events_over_) {
    FinishGang();
    return kNever;
  }
  if (gone || gang_->sweeping()) return now + kSweepPause;
  if (now >= kill_at_) {
    gang_->Kill();
    kill_at_ = now + std::chrono::seconds(1);
  }
  if (now >= limits_due_) {
    CheckLimits(now);
  }
  return std::min(kill_at_, limits_due_);
}

void Attempt::ReadEvents() {
  auto events = reader_.Read(gang_->events_fd());
  events_over_ = reader_.ended() || !events.ok();
  // The ranks are gone and what they had written was read, yet the pipe is open: somebody outside
  // of the group holds it.
  if (!gang_->sweeping() && gang_->status() && events.ok() && events->empty()) events_over_ = true;
  if (events.ok() && !events->empty()) {
    for (lemo::v1::RunEvent& event : *events) {
      names_.Restore(&event);
      if (event.has_error()) end_.error = event.error();
    }
    absl::Status status = outbox_.Add(*std::move(events));
    if (!status.ok()) {
      events = status;
      events_over_ = true;
    }
  }
  if (!events.ok()) EndGang(SystemError(std::string(events.status().message())));
}

void Attempt::CheckLimits(Instant now) {
  const lemo::v1::LimitSpec& limits = assignment_.limits();
  Usage usage;
  usage.run_seconds = assignment_.run_seconds_used() + ToSeconds(now - started_at_);
  if (limits.has_disk_bytes()) usage.disk_bytes = DirectoryBytes(journal_.directory());
  if (limits.has_host_memory_bytes()) {
    usage.host_memory_bytes = GroupResidentBytes(gang_->leader());
  }
  if (auto failure = Exceeded(limits, usage)) EndGang(*std::move(failure));
  limits_due_ = now + kLimitsPause;
  if (limits.has_run_seconds()) {
    const double left = limits.run_seconds() - usage.run_seconds;
    limits_due_ = std::min(limits_due_, now + FromSeconds(std::max(left, 0.0)) + kLimitsSlack);
  }
}

void Attempt::EndGang(lemo::v1::Failure failure) {
  if (!end_.failure) end_.failure = std::move(failure);
  if (gang_ != nullptr) gang_->Kill();
}

void Attempt::DropGang() {
  if (gang_ == nullptr) return;
  const pid_t group = gang_->leader();
  gang_ = nullptr;
  if (context_.watchdog != nullptr) context_.watchdog->Unwatch(group);
}

void Attempt::FinishGang() {
  end_.status = gang_->status().value_or(0);
  end_.log_tail = LastBytes(journal_.log(0), kLogTailBytes);
  record_.run_seconds = ToSeconds(BootClock::now() - started_at_);
  DropGang();
  kill_at_ = kNever;
  if (forgotten_) return;
  AttemptEnded ended = Judge(end_);
  if (ended.outcome() != AttemptEnded::SUCCEEDED) {
    End(std::move(ended));
    return;
  }
  record_.succeeded = true;
  absl::Status status = outbox_.SyncEvents();
  if (status.ok()) status = journal_.Write(record_);
  if (!status.ok()) {
    End(Failed(SystemError(std::string(status.message()))));
    return;
  }
  StartHandingOver();
}

void Attempt::End(AttemptEnded ended) {
  *ended.mutable_id() = record_.id;
  ended.set_run_seconds(record_.run_seconds);
  ended.set_last_sequence(outbox_.last_sequence());
  absl::Status status = outbox_.SyncEvents();
  if (status.ok()) status = journal_.WriteEnded(ended);
  // It is told nevertheless. Should the agent die before the coordinator has heard, the next agent
  // ends the attempt as a fault of the machine, which a full disk is.
  if (!status.ok()) std::cerr << "lemo-worker: " << status.message() << "\n";
  final_ = IsFinal(ended);
  outbox_.SetEnded(std::move(ended));
}

void Attempt::Stop(Instant now, BootClock::duration patience) {
  if (ended()) return;
  end_.asked_to_stop = true;
  if (gang_ != nullptr) {
    gang_->AskToStop();
    kill_at_ = std::min(kill_at_, now + patience);
  } else if (transfer_ != nullptr && !handing_over_) {
    stop_before_start_ = true;
    transfer_->canceller.Cancel();
  }
}

void Attempt::Kill() {
  if (ended()) return;
  end_.asked_to_stop = true;
  if (gang_ != nullptr) {
    gang_->Kill();
  } else if (transfer_ != nullptr) {
    stop_before_start_ = true;
    transfer_->canceller.Cancel();
  }
}

void Attempt::Fence(Instant kill_at) {
  if (ended() || handing_over_) return;
  if (!end_.failure) {
    end_.failure = SystemError(
        "the coordinator could not be reached: the ranks were ended before the lease was over");
  }
  if (gang_ != nullptr) {
    gang_->AskToStop();
    kill_at_ = std::min(kill_at_, kill_at);
  } else if (transfer_ != nullptr) {
    transfer_->canceller.Cancel();
  }
}

void Attempt::Forget() {
  forgotten_ = true;
  if (gang_ != nullptr) gang_->Kill();
  if (transfer_ != nullptr) transfer_->canceller.Cancel();
}

void Attempt::Clean() {
  journal_.Remove();
  std::error_code ignored;
  if (final_) fs::remove_all(journal_.directory(), ignored);
}

}  // namespace lemo::agent
