#include "worker/agent/attempt.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/job_files.h"
#include "common/message_json.h"
#include "common/status_macros.h"
#include "worker/agent/daemon_call.h"
#include "worker/agent/devices.h"
#include "worker/agent/gang_command.h"
#include "worker/agent/process_info.h"
#include "worker/agent/rank_runner.h"
#include "worker/agent/result_upload.h"

namespace lemo::agent {
namespace {

namespace fs = std::filesystem;
using lemo::v1::AttemptEnded;

constexpr int64_t kLogTailBytes = 4 << 10;
constexpr auto kLimitsPause = std::chrono::seconds(2);
constexpr auto kLimitsSlack = std::chrono::milliseconds(20);
// How long the ranks of an agent that died may take for their checkpoint: of one node; and of
// several, where all is to be over in ten seconds.
constexpr auto kOrphansOfOne = std::chrono::seconds(20);
constexpr auto kOrphansOfSeveral = std::chrono::seconds(6);
constexpr auto kSweepPause = std::chrono::milliseconds(10);
// At most so many reads of the event pipe in one turn of the loop, so that one job's flood does not
// starve the lease.
constexpr int kReadsPerTurn = 16;
// More on one machine are a mistake; those of the assignment are compared with its devices.
constexpr int kRanksMax = 4096;

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

std::vector<LogTail> LogsOf(const AttemptJournal& journal, const AttemptRecord& record) {
  std::vector<LogTail> logs;
  for (int rank = record.first_rank; rank < record.first_rank + record.ranks; ++rank) {
    logs.emplace_back(journal.log(rank), rank, record.id.attempt());
  }
  return logs;
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
  record.ranks = std::clamp(assignment.devices_size(), 1, kRanksMax);
  record.gang_ranks = std::clamp(assignment.ranks(), 1, kRanksMax);
  for (const lemo::v1::AssignedNode& node : assignment.nodes()) {
    if (node.worker() == context.worker) break;
    record.first_rank += node.ranks();
  }
  record.boot_id = BootId();
  record.start_unix_seconds = UnixSeconds();
  LEMO_RETURN_IF_ERROR(journal.Write(record));
  LEMO_ASSIGN_OR_RETURN(Spool spool, Spool::Open(journal.spool()));
  std::unique_ptr<Attempt> attempt(
      new Attempt(context, std::move(record), std::move(journal), std::move(spool)));
  attempt->assignment_ = assignment;
  if (attempt->over_several() && assignment.nodes(0).worker() != context.worker) {
    const AttemptRecord& here = attempt->record_;
    attempt->part_ = std::make_shared<GangPart>(assignment.gang_token(), attempt->journal_,
                                                here.first_rank, here.ranks, context.waker);
    context.parts->Add(assignment.id(), attempt->part_);
  }
  attempt->StartFetching();
  return attempt;
}

absl::StatusOr<std::unique_ptr<Attempt>> Attempt::Recover(const AttemptContext& context,
                                                          const fs::path& directory,
                                                          BootClock::duration patience) {
  LEMO_ASSIGN_OR_RETURN(AttemptRecord record, AttemptJournal::Read(directory));
  if (record.leader > 0) EndLeftover(record.leader, record.start_ticks, patience);
  RemoveScratch(directory);
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
    fault.mutable_failure()->set_log_tail(
        LastBytes(attempt->journal_.log(attempt->record_.first_rank), kLogTailBytes));
    attempt->End(std::move(fault));
  }
  return attempt;
}

Attempt::Attempt(const AttemptContext& context, AttemptRecord record, AttemptJournal journal,
                 Spool spool)
    : context_(context),
      record_(std::move(record)),
      journal_(std::move(journal)),
      outbox_(record_.id, std::move(spool), LogsOf(journal_, record_)) {}

Attempt::~Attempt() {
  if (part_ != nullptr) context_.parts->Remove(record_.id);
  DropGang();
  if (transfer_ != nullptr) {
    transfer_->canceller.Cancel();
    transfer_->thread.join();
  }
}

AttemptStatus Attempt::Status() const {
  AttemptStatus status;
  status.job = record_.id.job();
  status.waiting_events = outbox_.waiting_events();
  status.spool_bytes = outbox_.spool_bytes();
  if (gang_ != nullptr) {
    status.state = AttemptStatus::State::kRunning;
    status.group = gang_->leader();
    status.devices.assign(assignment_.devices().begin(), assignment_.devices().end());
    status.step = last_step_;
    status.recall = last_recall_;
    status.bad_blocks = bad_blocks_;
    status.checkpoint = last_checkpoint_;
  } else if (!ended()) {
    status.state = Does(Work::kHandingOver) ? AttemptStatus::State::kHandingOver
                                            : AttemptStatus::State::kFetching;
  }
  return status;
}

template <typename Do>
void Attempt::StartTransfer(Work work, Do what) {
  transfer_ = std::make_unique<Transfer>();
  transfer_->work = work;
  transfer_->thread =
      std::thread([transfer = transfer_.get(), what = std::move(what), waker = context_.waker] {
        what(transfer);
        transfer->done = true;
        waker->Wake();
      });
}

void Attempt::StartFetching() {
  StartTransfer(Work::kFetching, [assignment = assignment_, cache = context_.cache,
                                  models = context_.models, jobs = context_.jobs,
                                  out = journal_.out(), leads = leads()](Transfer* transfer) {
    for (const lemo::v1::InputFile& file : assignment.files()) {
      absl::StatusOr<fs::path> path = cache->Fetch(file, &transfer->canceller);
      if (!path.ok()) {
        transfer->status = path.status();
        break;
      }
      transfer->files[file.name()] = path->string();
    }
    // Jobs of coordinators that knew no files of models have none.
    if (transfer->status.ok() && !assignment.model_files().empty()) {
      auto model = models->Prepare(assignment, &transfer->canceller);
      transfer->status = model.status();
      if (model.ok()) transfer->model = *std::move(model);
    }
    // Of a gang rank 0 reads it, and hands the others what is theirs.
    if (transfer->status.ok() && leads && assignment.has_checkpoint()) {
      const absl::Status status = FetchCheckpoint(assignment.id().job(), assignment.checkpoint(),
                                                  out, jobs, &transfer->canceller);
      if (absl::IsCancelled(status)) {
        transfer->status = status;
      } else if (!status.ok()) {
        std::cerr << "lemo-worker: " << assignment.id().job()
                  << ": begins without the checkpoint of step " << assignment.checkpoint().step()
                  << ": " << status.message() << "\n";
      }
    }
  });
}

void Attempt::StartGathering() {
  StartTransfer(Work::kGathering, [peers = peers_](Transfer* transfer) {
    transfer->status = AwaitReady(peers, &transfer->canceller);
  });
}

void Attempt::StartEndingOthers() {
  StartTransfer(Work::kEndingOthers,
                [peers = peers_](Transfer* transfer) { transfer->ends = EndRanks(peers); });
}

void Attempt::StartHandingOver() {
  StartTransfer(Work::kHandingOver, [id = record_.id, out = journal_.out(),
                                     stub = context_.coordinator](Transfer* transfer) {
    auto artifacts = UploadResult(id, out, stub, &transfer->canceller);
    transfer->status = artifacts.status();
    if (artifacts.ok()) transfer->artifacts = *std::move(artifacts);
  });
}

void Attempt::FinishTransfer() {
  transfer_->thread.join();
  const std::unique_ptr<Transfer> transfer = std::move(transfer_);
  if (forgotten_) return;
  if (transfer->work == Work::kEndingOthers) {
    remote_ends_ = std::move(transfer->ends);
    Conclude();
  } else if (stop_before_start_) {
    AttemptEnded ended;
    ended.set_outcome(AttemptEnded::STOPPED);
    End(std::move(ended));
  } else if (end_.failure && transfer->work != Work::kHandingOver) {
    End(Failed(*end_.failure));
  } else if (!transfer->status.ok()) {
    End(Failed(SystemError(std::string(transfer->status.message()))));
  } else if (transfer->work == Work::kHandingOver) {
    AttemptEnded ended;
    ended.set_outcome(AttemptEnded::SUCCEEDED);
    for (lemo::v1::Artifact& artifact : transfer->artifacts) {
      *ended.add_artifacts() = std::move(artifact);
    }
    End(std::move(ended));
  } else if (absl::Status status =
                 transfer->work == Work::kGathering ? StartGang() : BeginRun(*transfer);
             !status.ok()) {
    End(Failed(SystemError(std::string(status.message()))));
  }
}

absl::Status Attempt::BeginRun(const Transfer& transfer) {
  LEMO_RETURN_IF_ERROR(WriteSpecs(transfer));
  if (!leads()) {
    part_->SetReady();
    return absl::OkStatus();
  }
  if (!over_several()) return StartGang();
  LEMO_ASSIGN_OR_RETURN(peers_, GangFile::Of(assignment_));
  LEMO_RETURN_IF_ERROR(peers_.Write(journal_.gang()));
  StartGathering();
  return absl::OkStatus();
}

absl::Status Attempt::WriteSpecs(const Transfer& transfer) {
  std::vector<std::string> devices;  // of the ranks here
  for (const int index : assignment_.devices()) {
    if (index < 0 || index >= static_cast<int>(context_.devices->size())) {
      return absl::FailedPreconditionError(
          absl::StrCat("devices: ", index, "; this worker has ", context_.devices->size()));
    }
    devices.push_back((*context_.devices)[static_cast<size_t>(index)].train_name);
  }
  int ranks = over_several() ? 0 : assignment_.devices_size();
  int here = over_several() ? -1 : ranks;
  for (const lemo::v1::AssignedNode& node : assignment_.nodes()) {
    ranks += node.ranks();
    if (node.worker() == context_.worker) here = node.ranks();
  }
  if (devices.empty() || here != assignment_.devices_size() || ranks != record_.gang_ranks) {
    return absl::FailedPreconditionError(absl::StrCat(
        "devices: ", devices.size(), " for ", over_several() ? absl::StrCat(here, " of ") : "",
        record_.gang_ranks, " ranks"));
  }
  if (transfer.model == nullptr &&
      !UnderRoots(assignment_.model_path(), context_.options->model_roots)) {
    return absl::FailedPreconditionError(absl::StrCat("model_path: ", assignment_.model_path(),
                                                      " is under no model root of this worker"));
  }
  const std::string& predictor = assignment_.run().tokens().predictor();
  const bool of_job = IsJobName(predictor);
  if (of_job) {
    LEMO_RETURN_IF_ERROR(LinkPredictor(predictor, transfer.files, journal_.predictor()));
  } else if (!predictor.empty() && predictor != "auto" &&
             !UnderRoots(predictor, context_.options->model_roots)) {
    return absl::FailedPreconditionError(
        absl::StrCat("tokens.predictor: ", predictor, " is under no model root of this worker"));
  }
  model_ = transfer.model;
  device_ = devices[0];
  const LocalPaths paths{.files = transfer.files,
                         .model = model_ != nullptr ? model_->string() : assignment_.model_path(),
                         .out = journal_.out().string(),
                         .device = device_,
                         .bases = device_ == "cpu" || context_.options->cuda_bases
                                      ? context_.options->bases.string()
                                      : "",
                         .predictors = (context_.options->directory / "predictors").string(),
                         .predictor = of_job ? journal_.predictor().string() : ""};
  // Of the attempt before, whose contract had been amended.
  std::error_code ignored;
  fs::remove(journal_.budget(), ignored);
  LEMO_ASSIGN_OR_RETURN(lemo::v1::RunSpec spec, MakeRankSpec(assignment_, paths));
  for (int rank = 0; rank < record_.ranks; ++rank) {
    spec.set_device(devices[static_cast<size_t>(rank)]);
    LEMO_RETURN_IF_ERROR(WriteFileAtomic(
        alone() ? journal_.spec() : journal_.spec(absl::StrCat(record_.first_rank + rank)),
        MessageToJson(spec, {}).dump(1) + "\n"));
  }
  names_ = PathNames(assignment_, paths);
  return absl::OkStatus();
}

NodeSettings Attempt::Here() const {
  return {.directory = journal_.directory(),
          .worker = context_.options->program,
          .train = context_.options->train,
          .interfaces = context_.options->mpi_interfaces,
          .first_port = context_.options->mpi_first_port,
          .last_port = context_.options->mpi_last_port};
}

absl::Status Attempt::StartGang() {
  RanksToStart ranks{.ranks = record_.gang_ranks,
                     .directory = journal_.directory(),
                     .attempt = record_.id.attempt(),
                     .worker = context_.options->program};
  std::string train = context_.options->train.string();
  std::string spec = (alone() ? journal_.spec() : journal_.spec(kRankPlace)).string();
  if (over_several()) {
    ranks.nodes = SeveralNodes{.gang = journal_.gang(), .here = Here()};
    for (const lemo::v1::AssignedNode& node : assignment_.nodes()) {
      ranks.nodes->ranks.push_back(node.ranks());
    }
    train = kTrainPlace;
    spec = absl::StrCat(kDirectoryPlace, "/", fs::path(spec).filename().string());
  }
  ranks.command = {train, spec, "--resume", "auto", "--events", "fd:3"};
  LEMO_ASSIGN_OR_RETURN(GangCommand command, MakeGangCommand(ranks));
  LEMO_RETURN_IF_ERROR(
      Launch(std::move(command), alone() ? journal_.log(0) : journal_.mpirun_log()));
  share_ = std::make_unique<CheckpointShare>(record_.id, journal_.out(), journal_.share(),
                                             assignment_.shared_checkpoint_bytes(),
                                             context_.coordinator, context_.waker);
  outbox_.SetStarted();
  return absl::OkStatus();
}

absl::Status Attempt::StartDaemon(const std::vector<std::string>& arguments) {
  LEMO_ASSIGN_OR_RETURN(GangCommand command, MakeDaemonCommand(Here(), arguments));
  LEMO_RETURN_IF_ERROR(Launch(std::move(command), journal_.mpirun_log()));
  outbox_.SetLogging();
  return absl::OkStatus();
}

absl::Status Attempt::Launch(GangCommand command, const fs::path& log) {
  GangOptions options{.command = std::move(command.command),
                      .environment = std::move(command.environment),
                      .log = log,
                      .stop_signal = command.stop_signal};
  // Jobs that share the CPU get a share of its cores each, unless the operator has said otherwise.
  if (const int sharing = context_.options->cpu_devices;
      device_ == "cpu" && sharing > 1 && ::getenv("OMP_NUM_THREADS") == nullptr) {
    options.environment.push_back(absl::StrCat("OMP_NUM_THREADS=", ThreadsOfCpu(sharing)));
  }
  // Who shares the CPU, be it one device of it by contract, does not spin: that would take the
  // others' share.
  if (device_ == "cpu" && (context_.options->cpu_devices > 1 || assignment_.contract_bytes() > 0) &&
      ::getenv("OMP_NUM_THREADS") == nullptr) {
    options.environment.push_back("OMP_WAIT_POLICY=passive");
  }
  // A gang that nobody would find after this agent's death, or end while it is stopped, must not
  // live.
  options.before_exec = [this](pid_t leader) -> absl::Status {
    record_.leader = leader;
    record_.start_ticks = StartTicks(leader).value_or(0);
    record_.start_unix_seconds = UnixSeconds();
    LEMO_RETURN_IF_ERROR(journal_.Write(record_));
    if (context_.watchdog == nullptr) return absl::OkStatus();
    // Ranks elsewhere are not to outlive this agent by long.
    return context_.watchdog->Watch(leader, over_several() ? kOrphansOfSeveral : kOrphansOfOne);
  };
  if (context_.watchdog != nullptr) options.not_after = context_.watchdog->Deadline();
  auto gang = Gang::Start(options);
  if (!gang.ok()) {
    if (context_.watchdog != nullptr) context_.watchdog->Unwatch(std::exchange(record_.leader, 0));
    return gang.status();
  }
  gang_ = *std::move(gang);
  if (context_.metrics != nullptr) context_.metrics->OnGangStarted();
  started_at_ = BootClock::now();
  limits_due_ = started_at_;
  return absl::OkStatus();
}

void Attempt::AddPollFds(std::vector<pollfd>* fds) const {
  if (gang_ == nullptr) return;
  if (gang_->exit_fd() >= 0) fds->push_back({.fd = gang_->exit_fd(), .events = POLLIN});
  if (!events_over_) fds->push_back({.fd = gang_->events_fd(), .events = POLLIN});
}

Instant Attempt::Advance(Instant now) {
  if (transfer_ != nullptr && transfer_->done) FinishTransfer();
  if (share_ != nullptr) {
    if (auto checkpoint = share_->Advance()) outbox_.SetCheckpoint(*std::move(checkpoint));
    if (pending_end_ && !share_->busy()) End(*std::exchange(pending_end_, std::nullopt));
  }
  if (part_ != nullptr && !ended() && !forgotten_) AdvancePart(now);
  if (gang_ == nullptr) return !leads() && !ended() ? kill_at_ : kNever;
  // Asked first: what the ranks wrote before they were gone is then in the pipe.
  const bool gone = gang_->Poll(now);
  for (int i = 0; i < kReadsPerTurn && !events_over_; ++i) {
    const int64_t before = outbox_.last_sequence();
    ReadEvents();
    if (outbox_.last_sequence() == before && !gone) break;
  }
  if (gone && events_over_) {
    leads() ? FinishGang() : FinishDaemon();
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

void Attempt::AdvancePart(Instant now) {
  if (auto arguments = part_->TakeStart()) {
    absl::Status status = StartDaemon(*arguments);
    daemon_ended_ = !status.ok();
    part_->Started(std::move(status));
  }
  if (gang_ != nullptr && part_->end_asked()) gang_->Kill();
  // Asked to stop, it let the lead do so with all ranks; who has not told it the end by now will
  // not.
  if (gang_ == nullptr && transfer_ == nullptr && now >= kill_at_) {
    AttemptEnded ended;
    ended.set_outcome(AttemptEnded::STOPPED);
    End(std::move(ended));
  }
}

void Attempt::ReadEvents() {
  auto events = reader_.Read(gang_->events_fd());
  events_over_ = reader_.ended() || !events.ok();
  // The ranks are gone and what they had written was read, yet the pipe is open: somebody outside
  // of the group holds it.
  if (!gang_->sweeping() && gang_->status() && events.ok() && events->empty()) events_over_ = true;
  if (events.ok()) {
    // Pictures, of up to half a megabyte each, for the report that comes with the result. They
    // would be most of what is kept here, sent, stored and watched of a job, and all of it twice.
    std::erase_if(*events, [](const lemo::v1::RunEvent& event) { return event.has_selection(); });
  }
  if (events.ok() && !events->empty()) {
    for (lemo::v1::RunEvent& event : *events) {
      if (event.has_checkpoint() && share_ != nullptr) share_->Offer(event.checkpoint());
      names_.Restore(&event);
      if (event.has_error()) end_.error = event.error();
      if (event.has_step()) Note(event.step());
      if (event.has_checkpoint() && event.checkpoint().reason() != "resumed") {
        last_checkpoint_ = BootClock::now();
      }
    }
    absl::Status status = outbox_.Add(*std::move(events));
    if (!status.ok()) {
      events = status;
      events_over_ = true;
    }
  }
  if (!events.ok()) EndGang(SystemError(std::string(events.status().message())));
}

void Attempt::Note(const lemo::v1::StepEvent& step) {
  last_step_ = step;
  if (!step.has_sparsity()) return;
  bad_blocks_ = bad_blocks_.value_or(0) + step.sparsity().bad_blocks();
  const auto& recall = step.sparsity().recall();
  if (!recall.empty()) {
    last_recall_ = std::accumulate(recall.begin(), recall.end(), 0.0) / recall.size();
  }
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
  model_ = nullptr;
  if (context_.watchdog != nullptr) context_.watchdog->Unwatch(group);
}

// Of several ranks each has noted its end; mpirun's own says only that some rank failed.
void Attempt::FindFirstFailure() {
  end_.ranks = record_.gang_ranks;
  std::vector<std::optional<RankEnd>> ends;
  for (int rank = 0; rank < record_.gang_ranks; ++rank) {
    const auto remote = remote_ends_.find(rank);
    ends.push_back(rank < record_.ranks           ? ReadRankEnd(journal_.rank_end(rank))
                   : remote == remote_ends_.end() ? std::nullopt
                                                  : std::optional(remote->second.end));
  }
  if (!end_.failure && !end_.asked_to_stop && end_.status != 0) {
    // Ranks fail when their peers are gone: a lost node is the cause.
    for (const Peer& peer : peers_.peers) {
      const auto lost = ReadFile(LostNote(journal_.gang(), peer.host), 1 << 16);
      if (!lost.ok()) continue;
      end_.failure = SystemError(*lost);
      return;
    }
  }
  if (const std::optional<int> rank = FirstToFail(ends)) {
    end_.rank = *rank;
    end_.status = ends[static_cast<size_t>(*rank)]->status;
    // A rank that fails tells the others why, and all leave at once; rank 0 tells us. Who is gone
    // first is chance then. One that was killed told nobody.
    if (!end_.error || !WIFEXITED(end_.status)) return;
    const int cause = RankNamedIn(end_.error->message()).value_or(0);
    if (cause >= record_.gang_ranks) return;
    end_.error_is_cause = true;
    end_.rank = cause;
    if (const auto& end = ends[static_cast<size_t>(cause)]; end && end->status != 0) {
      end_.status = end->status;
    }
    return;
  }
  const auto silent =
      std::find_if(ends.begin(), ends.end(), [](const auto& end) { return !end.has_value(); });
  if (end_.status == 0 && silent == ends.end()) return;
  if (end_.status == 0) {  // whoever is silent has not succeeded
    end_.status = W_EXITCODE(1, 0);
    end_.rank = static_cast<int>(silent - ends.begin());
    if (end_.rank >= record_.ranks && !end_.failure) {
      end_.failure = SystemError(
          absl::StrCat("how rank ", end_.rank, " ended is not known: its node does not tell"));
    }
  }
  if (!end_.asked_to_stop && !end_.failure) {
    end_.failure = SystemError(absl::StrCat(
        "mpirun ",
        WIFSIGNALED(end_.status) ? absl::StrCat("was ended by signal ", WTERMSIG(end_.status))
                                 : absl::StrCat("left with code ", WEXITSTATUS(end_.status)),
        " though no rank had failed: ", LastBytes(journal_.mpirun_log(), kLogTailBytes)));
  }
}

void Attempt::FinishGang() {
  end_.status = gang_->status().value_or(0);
  record_.run_seconds = ToSeconds(BootClock::now() - started_at_);
  DropGang();
  kill_at_ = kNever;
  if (forgotten_) return;
  if (over_several() && !killed_) {
    StartEndingOthers();
  } else {
    Conclude();
  }
}

void Attempt::FinishDaemon() {
  daemon_ended_ = true;
  part_->Ended(gang_->status().value_or(0));
  record_.run_seconds = ToSeconds(BootClock::now() - started_at_);
  DropGang();
  if (forgotten_) return;
  if (end_.failure) {
    End(Failed(*end_.failure));
  } else if (killed_) {
    AttemptEnded ended;
    ended.set_outcome(AttemptEnded::STOPPED);
    End(std::move(ended));
  }
}

// The gang has ended, here and elsewhere.
void Attempt::Conclude() {
  if (!alone()) FindFirstFailure();
  RemoveScratch(journal_.directory());
  const auto remote = remote_ends_.find(end_.rank);
  end_.log_tail = end_.rank >= record_.ranks && remote != remote_ends_.end()
                      ? remote->second.log_tail
                      : LastBytes(journal_.log(end_.rank), kLogTailBytes);
  AttemptEnded ended = Judge(end_);
  if (ended.outcome() != AttemptEnded::SUCCEEDED) {
    // Its last checkpoint goes first: after its end an attempt has nothing more to say.
    if (share_->busy()) {
      pending_end_ = std::move(ended);
    } else {
      End(std::move(ended));
    }
    return;
  }
  share_ = nullptr;
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
  // Of another's part it is not known how the job ended.
  final_ = leads() && IsFinal(ended);
  if (part_ != nullptr) part_->Close();
  RemoveScratch(journal_.directory());
  if (context_.metrics != nullptr) context_.metrics->OnAttemptEnded(ended);
  outbox_.SetEnded(std::move(ended));
}

void Attempt::SetBudget(int64_t bytes) {
  if (gang_ == nullptr || bytes < 1) return;
  const absl::Status status =
      WriteFileAtomic(journal_.budget(), absl::StrCat(BudgetOf(assignment_.run(), bytes), "\n"));
  // The coordinator counts on nothing until a step has told that it keeps to it.
  if (!status.ok()) std::cerr << "lemo-worker: " << status.message() << "\n";
}

void Attempt::Stop(Instant now, BootClock::duration patience) {
  if (ended()) return;
  end_.asked_to_stop = true;
  if (gang_ != nullptr) {
    // Of a gang that another node leads, that one lets the ranks checkpoint.
    if (leads()) gang_->AskToStop();
    kill_at_ = std::min(kill_at_, now + patience);
  } else if (Does(Work::kFetching) || Does(Work::kGathering)) {
    stop_before_start_ = true;
    transfer_->canceller.Cancel();
  } else if (part_ != nullptr) {
    kill_at_ = std::min(kill_at_, daemon_ended_ ? now + patience : now);
  }
}

void Attempt::Kill() {
  if (ended()) return;
  end_.asked_to_stop = true;
  killed_ = true;
  if (share_ != nullptr) share_->Cancel();
  if (gang_ != nullptr) {
    gang_->Kill();
  } else if (transfer_ != nullptr && !Does(Work::kEndingOthers)) {
    stop_before_start_ = true;
    transfer_->canceller.Cancel();
  } else if (part_ != nullptr) {
    kill_at_ = Instant{};
  }
}

void Attempt::Fence(Instant kill_at) {
  if (ended() || Does(Work::kHandingOver)) return;
  if (!end_.failure) {
    end_.failure = SystemError(
        "the coordinator could not be reached: the ranks were ended before the lease was over");
  }
  if (share_ != nullptr) share_->Cancel();
  if (part_ != nullptr) part_->Close();
  if (gang_ != nullptr) {
    if (leads()) gang_->AskToStop();
    kill_at_ = std::min(kill_at_, kill_at);
  } else if (transfer_ != nullptr) {
    transfer_->canceller.Cancel();
  } else if (part_ != nullptr) {
    End(Failed(*end_.failure));
  }
}

void Attempt::Forget() {
  forgotten_ = true;
  if (share_ != nullptr) share_->Cancel();
  if (part_ != nullptr) part_->Close();
  if (gang_ != nullptr) gang_->Kill();
  if (transfer_ != nullptr) transfer_->canceller.Cancel();
}

void Attempt::Clean() {
  journal_.Remove();
  std::error_code ignored;
  if (final_) fs::remove_all(journal_.directory(), ignored);
}

}  // namespace lemo::agent
