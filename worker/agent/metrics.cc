#include "worker/agent/metrics.h"

#include <algorithm>
#include <fstream>
#include <initializer_list>
#include <map>
#include <numeric>
#include <string>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/directory_bytes.h"
#include "common/metrics_server.h"
#include "common/process_metrics.h"
#include "worker/agent/metric_families.h"
#include "worker/agent/process_info.h"

namespace lemo::agent {
namespace {

namespace fs = std::filesystem;
using lemo::v1::AttemptEnded;
using lemo::v1::Failure;

constexpr const char* kLimitNames[] = {"run_seconds", "disk_bytes", "host_memory_bytes"};

// As labels: `OUT_OF_MEMORY` is `out_of_memory`.
std::string Label(const std::string& name) { return absl::AsciiStrToLower(name); }

const char* Label(AttemptStatus::State state) {
  switch (state) {
    case AttemptStatus::State::kFetching:
      return "fetching";
    case AttemptStatus::State::kRunning:
      return "running";
    case AttemptStatus::State::kHandingOver:
      return "handing_over";
    case AttemptStatus::State::kEnded:
      break;
  }
  return "ended";
}

double HostMemoryAvailable() {
  std::ifstream file("/proc/meminfo");
  for (std::string word; file >> word;) {
    double kib = 0;
    if (word == "MemAvailable:" && file >> kib) return kib * 1024;
  }
  return 0;
}

double Mean(const google::protobuf::RepeatedField<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / values.size();
}

// Of a rank whose last step dropped rows.
void AddSparsity(const AttemptStatus& attempt, const metrics::Labels& rank,
                 metrics::Samples* samples) {
  const lemo::v1::StepEvent& step = *attempt.step;
  const lemo::v1::TokenSparsity& sparsity = step.sparsity();
  if (!sparsity.attention_kept().empty() && !sparsity.mlp_kept().empty()) {
    samples->Set(families::kRankRowsKept, Mean(sparsity.attention_kept()),
                 {attempt.job, "0", "attention"});
    samples->Set(families::kRankRowsKept, Mean(sparsity.mlp_kept()), {attempt.job, "0", "mlp"});
  }
  samples->Set(families::kRankNeverKept, sparsity.never_kept(), rank);
  samples->Set(families::kRankLossKept, sparsity.loss_kept(), rank);
  if (step.seconds() > 0) {
    samples->Set(families::kRankSelectionTime, sparsity.selection_seconds() / step.seconds(), rank);
  }
  if (attempt.recall) samples->Set(families::kRankRecall, *attempt.recall, rank);
}

// Of what rank 0 tells of all ranks.
void AddRanks(const AttemptStatus& attempt, metrics::Samples* samples) {
  const lemo::v1::GangStep& ranks = attempt.step->gang();
  samples->Set(families::kRankCollectiveWait, ranks.waited_seconds(), {attempt.job, "0"});
  for (int rank = 0; rank < ranks.busy_seconds_size(); ++rank) {
    samples->Set(families::kRankBusy, ranks.busy_seconds(rank),
                 {attempt.job, std::to_string(rank)});
  }
  // Its own by category, and later.
  for (int rank = 1; rank < ranks.peak_bytes_size(); ++rank) {
    samples->Set(families::kRankMemory, static_cast<double>(ranks.peak_bytes(rank)),
                 {attempt.job, std::to_string(rank), "total"});
  }
}

void AddGang(const AttemptStatus& attempt, Instant now, metrics::Samples* samples) {
  if (const std::optional<GroupUsage> usage = UsageOfGroup(attempt.group)) {
    samples->Set(families::kGangResident, static_cast<double>(usage->resident_bytes),
                 {attempt.job});
    samples->Set(families::kGangCpu, usage->cpu_seconds, {attempt.job});
  }
  // The one that tells.
  const metrics::Labels rank = {attempt.job, "0"};
  if (attempt.checkpoint) {
    samples->Set(families::kRankCheckpointAge, ToSeconds(now - *attempt.checkpoint), rank);
  }
  if (attempt.bad_blocks) {
    samples->Set(families::kRankBadBlocks, static_cast<double>(*attempt.bad_blocks), rank);
  }
  if (!attempt.step) return;
  if (attempt.step->has_sparsity()) AddSparsity(attempt, rank, samples);
  if (attempt.step->has_gang()) AddRanks(attempt, samples);
  const lemo::v1::StepEvent& step = *attempt.step;
  samples->Set(families::kRankStep, step.step(), rank);
  samples->Set(families::kRankSteps, step.steps(), rank);
  samples->Set(families::kRankStepSeconds, step.seconds(), rank);
  samples->Set(families::kRankTokens, step.tokens_per_second(), rank);
  samples->Set(families::kRankLoss, step.loss(), rank);
  samples->Set(families::kRankLearningRate, step.learning_rate(), rank);
  samples->Set(families::kRankGradNorm, step.grad_norm(), rank);
  const lemo::v1::PeakBytes& peak = step.peak();
  for (const auto& [category, bytes] : std::initializer_list<std::pair<const char*, int64_t>>{
           {"weights", peak.weights()},
           {"trainable", peak.trainable()},
           {"saved_activations", peak.saved_activations()},
           {"transient", peak.transient()},
           {"loss", peak.loss()},
           {"total", peak.total()}}) {
    samples->Set(families::kRankMemory, static_cast<double>(bytes), {attempt.job, "0", category});
  }
}

void AddDevices(const AgentStatus& status, metrics::Samples* samples) {
  struct Kind {
    int devices = 0, busy = 0;
    double memory = 0;
  };
  std::map<std::string, Kind> kinds;
  std::map<int, std::string> kind_of;
  for (const lemo::v1::Device& device : status.devices) {
    kind_of[device.index()] = Label(lemo::v1::Device::Kind_Name(device.kind()));
    Kind& kind = kinds[kind_of[device.index()]];
    ++kind.devices;
    kind.memory += static_cast<double>(device.memory_bytes());
  }
  for (const AttemptStatus& attempt : status.attempts) {
    if (attempt.state != AttemptStatus::State::kRunning) continue;
    for (const int device : attempt.devices) {
      if (const auto kind = kind_of.find(device); kind != kind_of.end()) ++kinds[kind->second].busy;
    }
  }
  for (const auto& [name, kind] : kinds) {
    samples->Set(families::kDevices, kind.devices, {name});
    samples->Set(families::kDevicesBusy, kind.busy, {name});
    samples->Set(families::kDeviceMemory, kind.memory, {name});
  }
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

void AddAgentSamples(const AgentStatus& status, Instant now, metrics::Samples* samples) {
  samples->Set(families::kConnected, status.connected ? 1 : 0);
  samples->Set(families::kDraining, status.draining ? 1 : 0);
  if (status.lease_renewed) {
    samples->Set(families::kLeaseAge, ToSeconds(now - *status.lease_renewed));
    samples->Set(families::kLease, ToSeconds(status.lease));
  }
  AddDevices(status, samples);
  samples->Set(families::kHostMemory, static_cast<double>(status.host_memory_bytes));
  samples->Set(families::kBases, static_cast<double>(status.bases_bytes));
  std::map<std::string, int> states = {
      {"fetching", 0}, {"running", 0}, {"handing_over", 0}, {"ended", 0}};
  int64_t waiting_events = 0, spool_bytes = 0;
  for (const AttemptStatus& attempt : status.attempts) {
    ++states[Label(attempt.state)];
    waiting_events += attempt.waiting_events;
    spool_bytes += attempt.spool_bytes;
    if (attempt.state == AttemptStatus::State::kRunning) AddGang(attempt, now, samples);
  }
  for (const auto& [state, count] : states) samples->Set(families::kAttempts, count, {state});
  samples->Set(families::kSpoolEvents, static_cast<double>(waiting_events));
  samples->Set(families::kSpoolBytes, static_cast<double>(spool_bytes));
}

Metrics::Metrics(const fs::path& directory, const std::string& version)
    : registry_(std::make_shared<metrics::Registry>(MetricFamilies())) {
  registry_->Count(families::kGangsStarted, {}, 0);
  for (const char* outcome : {"succeeded", "stopped"}) {
    registry_->Count(families::kEnded, {outcome, "none"}, 0);
  }
  for (const Failure::Kind kind : {Failure::USER_ERROR, Failure::OUT_OF_MEMORY,
                                   Failure::SYSTEM_ERROR, Failure::LIMIT_EXCEEDED}) {
    registry_->Count(families::kEnded, {"failed", Label(Failure::Kind_Name(kind))}, 0);
  }
  for (const char* limit : kLimitNames) registry_->Count(families::kLimits, {limit}, 0);

  std::map<std::string, std::shared_ptr<metrics::DirectoryBytes>> kept;
  for (const char* kind : {"files", "models", "jobs"}) {
    kept[kind] = std::make_shared<metrics::DirectoryBytes>(directory / kind);
  }
  registry_->AddSource([=, published = published_](metrics::Samples* samples) {
    AgentStatus status;
    {
      const std::lock_guard lock(published->mutex);
      status = published->status;
    }
    AddAgentSamples(status, BootClock::now(), samples);
    samples->Set(families::kHostMemoryFree, HostMemoryAvailable());
    for (const auto& [kind, bytes] : kept) {
      samples->Set(families::kDirectory, static_cast<double>(bytes->Get()), {kind});
    }
    std::error_code error;
    if (const fs::space_info space = fs::space(directory, error); !error) {
      samples->Set(families::kDiskFree, static_cast<double>(space.available));
    }
    metrics::AddProcessSamples(version, samples);
  });
}

void Metrics::Publish(AgentStatus status) {
  const std::lock_guard lock(published_->mutex);
  published_->status = std::move(status);
}

void Metrics::OnGangStarted() { registry_->Count(families::kGangsStarted); }

void Metrics::OnAttemptEnded(const AttemptEnded& ended) {
  const bool failed = ended.outcome() == AttemptEnded::FAILED;
  const Failure::Kind kind = failed ? ended.failure().kind() : Failure::KIND_UNSPECIFIED;
  registry_->Count(families::kEnded,
                   {Label(AttemptEnded::Outcome_Name(ended.outcome())),
                    kind == Failure::KIND_UNSPECIFIED ? "none" : Label(Failure::Kind_Name(kind))});
  if (kind != Failure::LIMIT_EXCEEDED) return;
  // Such a message begins with the field of the limit.
  for (const char* limit : kLimitNames) {
    if (absl::StartsWith(ended.failure().message(), absl::StrCat("limits.", limit, ":"))) {
      registry_->Count(families::kLimits, {limit});
    }
  }
}

}  // namespace lemo::agent
