#include "coordinator/runtime/metrics.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iterator>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/time/clock.h"
#include "common/directory_bytes.h"
#include "common/metrics_server.h"
#include "common/process_metrics.h"
#include "coordinator/runtime/metric_families.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;
using lemo::v1::Failure;
using lemo::v1::Job;
using lemo::v1::Worker;

// As labels: `OUT_OF_MEMORY` is `out_of_memory`.
std::string Label(const std::string& name) { return absl::AsciiStrToLower(name); }

std::string ReasonLabel(Job::ReasonCode code) {
  return code == Job::REASON_UNSPECIFIED ? "none" : Label(Job::ReasonCode_Name(code));
}

std::string KindLabel(Failure::Kind kind) {
  return kind == Failure::KIND_UNSPECIFIED ? "none" : Label(Failure::Kind_Name(kind));
}

std::string KindOf(const lemo::v1::JobEvent& event) {
  if (event.has_state()) return "state";
  if (event.has_contract()) return "contract";
  const auto* field = lemo::v1::RunEvent::descriptor()->FindFieldByNumber(event.run().event_case());
  return field == nullptr ? "unknown" : field->name();
}

constexpr const char* kAmendmentActions[] = {"contract_cut", "contract_within", "contract_raised",
                                             "storage",      "offload",         "micro_batch",
                                             "keep",         "evaluation",      "other"};

// Ranks may be of another version, and a label has few values.
std::string ActionLabel(const std::string& action) {
  const bool known = std::find(std::begin(kAmendmentActions), std::end(kAmendmentActions),
                               action) != std::end(kAmendmentActions);
  return known ? action : "other";
}

absl::Time ToTime(const google::protobuf::Timestamp& time) {
  return absl::FromUnixSeconds(time.seconds()) + absl::Nanoseconds(time.nanos());
}

// Clocks of several hosts differ, and are set.
double SecondsSince(absl::Time from, absl::Time to) {
  return std::max(absl::ToDoubleSeconds(to - from), 0.0);
}

void AddJob(const ClusterState::PlacedJob& job, absl::Time now, metrics::Samples* samples) {
  samples->Set(families::kJobAttempt, job.attempt, {job.name});
  samples->Set(families::kJobRestarts, job.restarts, {job.name});
  if (job.contract_bytes > 0) {
    samples->Set(families::kJobContract, static_cast<double>(job.contract_bytes), {job.name});
    samples->Set(families::kJobAllotment, static_cast<double>(job.allotted_bytes), {job.name});
  }
  if (job.base_bytes > 0) {
    samples->Set(families::kJobBase, static_cast<double>(job.base_bytes), {job.name, job.base});
  }
  const lemo::v1::Progress& progress = job.progress;
  if (progress.has_checkpoint_time()) {
    samples->Set(families::kJobCheckpointAge, SecondsSince(ToTime(progress.checkpoint_time()), now),
                 {job.name});
  }
  if (!std::isnan(progress.eval_loss())) {
    samples->Set(families::kJobEvalLoss, progress.eval_loss(), {job.name});
  }
  if (progress.step() == 0) return;
  samples->Set(families::kJobStep, progress.step(), {job.name});
  samples->Set(families::kJobSteps, progress.steps(), {job.name});
  samples->Set(families::kJobStepSeconds, progress.step_seconds(), {job.name});
  samples->Set(families::kJobTokens, progress.tokens_per_second(), {job.name});
  samples->Set(families::kJobLoss, progress.loss(), {job.name});
  samples->Set(families::kJobLearningRate, progress.learning_rate(), {job.name});
  samples->Set(families::kJobGradNorm, progress.grad_norm(), {job.name});
  const lemo::v1::PeakBytes& peak = progress.peak();
  for (const auto& [category, bytes] : std::initializer_list<std::pair<const char*, int64_t>>{
           {"weights", peak.weights()},
           {"trainable", peak.trainable()},
           {"saved_activations", peak.saved_activations()},
           {"transient", peak.transient()},
           {"loss", peak.loss()},
           {"total", peak.total()}}) {
    samples->Set(families::kJobMemory, static_cast<double>(bytes), {job.name, category});
  }
}

// `busy`: of the worker's devices, by index.
void AddWorker(const Worker& worker, const std::set<int>& busy, absl::Time now,
               metrics::Samples* samples) {
  samples->Set(families::kWorkerLease,
               absl::ToDoubleSeconds(ToTime(worker.lease_expire_time()) - now), {worker.name()});
  samples->Set(families::kWorkerMemory, static_cast<double>(worker.host_memory_bytes()),
               {worker.name()});
  struct Kind {
    int devices = 0, busy = 0;
    double memory = 0;
  };
  std::map<std::string, Kind> kinds;
  std::map<int, std::string> kind_of;
  for (const lemo::v1::Device& device : worker.devices()) {
    kind_of[device.index()] = Label(lemo::v1::Device::Kind_Name(device.kind()));
    Kind& kind = kinds[kind_of[device.index()]];
    ++kind.devices;
    kind.memory += static_cast<double>(device.memory_bytes());
  }
  for (const int device : busy) {
    if (const auto kind = kind_of.find(device); kind != kind_of.end()) ++kinds[kind->second].busy;
  }
  for (const auto& [name, kind] : kinds) {
    samples->Set(families::kWorkerDevices, kind.devices, {worker.name(), name});
    samples->Set(families::kWorkerDevicesBusy, kind.busy, {worker.name(), name});
    samples->Set(families::kWorkerDeviceMemory, kind.memory, {worker.name(), name});
  }
}

double FileBytes(const fs::path& path) {
  std::error_code error;
  const uintmax_t size = fs::file_size(path, error);
  return error ? 0 : static_cast<double>(size);
}

}  // namespace

metrics::Families MetricFamilies() {
  metrics::Families all = families::Own();
  for (const metrics::Families& more :
       {metrics::ProcessFamilies(), metrics::Server::OwnFamilies()}) {
    all.insert(all.end(), more.begin(), more.end());
  }
  return all;
}

void AddClusterSamples(const ClusterState& state, absl::Time now, metrics::Samples* samples) {
  int64_t queued = 0;
  for (const auto& [key, count] : state.jobs) {
    if (key.first == Job::QUEUED) queued += count;
    samples->Set(families::kJobs, static_cast<double>(count),
                 {Label(Job::State_Name(key.first)), ReasonLabel(key.second)});
  }
  samples->Set(families::kQueueLength, static_cast<double>(queued));
  samples->Set(families::kQueueOldest,
               state.oldest_queued_time ? SecondsSince(*state.oldest_queued_time, now) : 0);
  std::map<std::string, std::set<int>> busy;  // by worker
  for (const ClusterState::PlacedJob& job : state.placed) {
    AddJob(job, now, samples);
    for (const lemo::v1::GangNode& node : job.nodes) {
      busy[node.worker()].insert(node.devices().begin(), node.devices().end());
    }
  }
  // Also those that are 0: an alert wants to see it.
  std::map<Worker::State, int> workers = {
      {Worker::READY, 0}, {Worker::CORDONED, 0}, {Worker::DRAINING, 0}, {Worker::LOST, 0}};
  for (const Worker& worker : state.workers) {
    ++workers[worker.state()];
    AddWorker(worker, busy[worker.name()], now, samples);
  }
  for (const auto& [worker_state, count] : workers) {
    samples->Set(families::kWorkers, count, {Label(Worker::State_Name(worker_state))});
  }
  samples->Set(families::kAgentStreams, static_cast<double>(state.agent_streams));
  samples->Set(families::kInbox, static_cast<double>(state.waiting_events));
}

Metrics::Metrics() : registry_(std::make_shared<metrics::Registry>(MetricFamilies())) {
  for (const char* result : {"accepted", "refused"}) {
    registry_->Count(families::kSubmissions, {result}, 0);
  }
  for (const char* outcome : {"made", "accepted", "none", "refused"}) {
    registry_->Count(families::kOffers, {outcome}, 0);
  }
  for (const char* outcome : {"succeeded", "cancelled"}) {
    registry_->Count(families::kEnded, {outcome, "none"}, 0);
  }
  for (const Failure::Kind kind : {Failure::USER_ERROR, Failure::OUT_OF_MEMORY,
                                   Failure::SYSTEM_ERROR, Failure::LIMIT_EXCEEDED}) {
    registry_->Count(families::kEnded, {"failed", KindLabel(kind)}, 0);
  }
  registry_->Count(families::kRestartsTotal, {}, 0);
  for (const char* action : kAmendmentActions) {
    registry_->Count(families::kAmendments, {action}, 0);
  }
  for (const char* outcome : {"fitted", "refused"}) {
    registry_->Count(families::kRehearsals, {outcome}, 0);
  }
  registry_->Count(families::kCommitFailures, {}, 0);
}

void Metrics::Show(const Cluster* cluster, WatchHub* hub, Validator* validator,
                   const std::string& directory, const std::string& version) {
  std::map<std::string, std::shared_ptr<metrics::DirectoryBytes>> contents;
  for (const char* kind : {"artifacts", "checkpoints"}) {
    contents[kind] = std::make_shared<metrics::DirectoryBytes>(fs::path(directory) / kind);
  }
  registry_->AddSource([=](metrics::Samples* samples) {
    AddClusterSamples(cluster->State(), absl::Now(), samples);
    samples->Set(families::kWatchers, static_cast<double>(hub->Watchers()));
    const Validator::Load load = validator->CurrentLoad();
    samples->Set(families::kValidations, static_cast<double>(load.running), {"running"});
    samples->Set(families::kValidations, static_cast<double>(load.waiting), {"waiting"});
    const fs::path database = fs::path(directory) / "lemo.db";
    samples->Set(families::kDatabase, FileBytes(database) + FileBytes(database.string() + "-wal"));
    for (const auto& [kind, content] : contents) {
      samples->Set(families::kContent, static_cast<double>(content->Get()), {kind});
    }
    std::error_code error;
    if (const fs::space_info space = fs::space(directory, error); !error) {
      samples->Set(families::kDiskFree, static_cast<double>(space.available));
    }
    metrics::AddProcessSamples(version, samples);
  });
}

void Metrics::OnCommit(const std::vector<Effect>& effects, absl::Duration took,
                       const absl::Status& stored) {
  const auto changes = std::count_if(effects.begin(), effects.end(), [](const Effect& effect) {
    return std::holds_alternative<Persist>(effect) || std::holds_alternative<PersistWorker>(effect);
  });
  if (changes == 0) return;
  if (!stored.ok()) {
    registry_->Count(families::kCommitFailures);
    return;
  }
  registry_->Observe(families::kCommit, absl::ToDoubleSeconds(took));
  registry_->Observe(families::kCommitChanges, static_cast<double>(changes));
  const absl::Time now = absl::Now();
  for (const Effect& effect : effects) {
    const auto* persist = std::get_if<Persist>(&effect);
    if (persist == nullptr) continue;
    for (const lemo::v1::JobEvent& event : persist->events) OnEvent(persist->record, event, now);
  }
}

void Metrics::OnEvent(const JobRecord& record, const lemo::v1::JobEvent& event, absl::Time now) {
  registry_->Count(families::kEvents, {KindOf(event)});
  if (event.has_run()) {
    if (event.run().unix_seconds() > 0) {
      const absl::Time said = absl::UnixEpoch() + absl::Seconds(event.run().unix_seconds());
      registry_->Observe(families::kEventLag, SecondsSince(said, now));
    }
    if (event.run().has_amendment()) {
      registry_->Count(families::kAmendments, {ActionLabel(event.run().amendment().action())});
    }
    if (event.run().has_rehearsal()) {
      registry_->Count(families::kRehearsals,
                       {event.run().rehearsal().refused() ? "refused" : "fitted"});
    }
    return;
  }
  if (event.has_contract()) {
    const std::string kind = Label(lemo::v1::ContractChange::Kind_Name(event.contract().kind()));
    registry_->Count(families::kAmendments, {ActionLabel("contract_" + kind)});
    return;
  }
  const lemo::v1::StateChange& change = event.state();
  if (change.from() == change.to()) return;  // another reason
  const absl::Time time = ToTime(event.time());
  const Job& job = record.job;
  switch (change.to()) {
    case Job::VALIDATING:
    case Job::PLANNING:
      registry_->Count(families::kSubmissions, {"accepted"});
      break;
    case Job::QUEUED:
      if (change.has_failure()) registry_->Count(families::kRestartsTotal);
      break;
    case Job::STARTING:
      registry_->Observe(families::kQueueWait, SecondsSince(record.queued_time, time));
      break;
    case Job::SUCCEEDED:
    case Job::FAILED:
    case Job::CANCELLED: {
      const std::string outcome = Label(Job::State_Name(change.to()));
      registry_->Count(families::kEnded, {outcome, KindLabel(change.failure().kind())});
      if (job.has_start_time()) {
        registry_->Observe(families::kRunTime, SecondsSince(ToTime(job.start_time()), time),
                           {outcome});
      }
      break;
    }
    default:
      break;
  }
}

void Metrics::OnOffers(const char* outcome) { registry_->Count(families::kOffers, {outcome}); }

void Metrics::OnCall(const std::string& method, const std::string& code, absl::Duration took,
                     bool unary) {
  registry_->Count(families::kRequests, {method, code});
  if (unary) {
    registry_->Observe(families::kRequestSeconds, absl::ToDoubleSeconds(took), {method});
  }
  if (method == "JobService/SubmitJob" && code != "OK") {
    registry_->Count(families::kSubmissions, {"refused"});
  }
}

}  // namespace lemo::coordinator
