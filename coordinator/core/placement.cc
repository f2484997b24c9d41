// When the scheduler is asked, and what becomes of its answer.
#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/core/contract.h"
#include "coordinator/core/core.h"

namespace lemo::coordinator {

using lemo::v1::Job;

namespace {

// Up to this many waiting jobs are looked at whenever something changes. More of them at most every
// so often, so that a flood of submissions costs no time that grows with its square.
constexpr size_t kShortQueue = 256;
constexpr absl::Duration kPauseAJob = absl::Microseconds(10);

Job::ReasonCode CodeOf(scheduler::WaitReason reason) {
  switch (reason) {
    case scheduler::WaitReason::kNoWorker:
      return Job::NO_WORKER;
    case scheduler::WaitReason::kWorkersCordoned:
      return Job::WORKERS_CORDONED;
    case scheduler::WaitReason::kNoSuchDevice:
      return Job::NO_SUCH_DEVICE;
    case scheduler::WaitReason::kMemoryTooSmall:
      return Job::MEMORY_TOO_SMALL;
    case scheduler::WaitReason::kDevicesBusy:
      return Job::DEVICES_BUSY;
    case scheduler::WaitReason::kBehindOthers:
      return Job::BEHIND_OTHERS;
  }
  return Job::REASON_UNSPECIFIED;
}

// Until a job that runs leaves its devices, or one that waits will have once it has started.
std::optional<double> SecondsLeft(const Job& job) {
  const lemo::v1::Progress& progress = job.progress();
  const bool runs = job.state() == Job::STARTING || job.state() == Job::RUNNING;
  // Of the attempt at hand: Start forgets what the one before had said.
  if (runs && progress.eta_seconds() > 0) return progress.eta_seconds();
  if (!job.has_contract()) return std::nullopt;
  const double left = progress.steps() > 0
                          ? 1 - static_cast<double>(progress.checkpoint_step()) / progress.steps()
                          : 1;
  return std::clamp(left, 0.0, 1.0) * job.contract().offer().run_seconds();
}

}  // namespace

scheduler::Occupant OccupantOf(const lemo::v1::Job& job) {
  scheduler::Occupant occupant;
  occupant.job = job.name();
  for (const lemo::v1::GangNode& node : job.nodes()) {
    occupant.parts.push_back({node.worker(), {node.devices().begin(), node.devices().end()}});
  }
  occupant.shares = job.has_contract();
  occupant.memory_bytes =
      job.has_allotment() ? job.allotment().memory_bytes() : job.contract().memory_bytes();
  occupant.seconds_left = SecondsLeft(job);
  occupant.base = BaseOf(job.contract());
  return occupant;
}

scheduler::Request SchedulerRequest(const JobRecord& record) {
  const lemo::v1::ResourceSpec& resources = record.job.spec().resources();
  scheduler::Request request;
  request.job = record.job.name();
  request.ranks = resources.has_ranks() ? std::max(resources.ranks(), 1) : 1;
  request.min_ranks = resources.min_ranks();
  request.multiple = std::max(record.job.spec().run().parallel().tensor(), 1);
  request.memory_bytes = resources.memory_bytes();
  request.shares = record.job.has_contract();
  request.base = BaseOf(record.job.contract());
  request.model_path = record.model_path;
  request.type = resources.device_type();
  if (resources.device() == "cpu") request.kind = scheduler::DeviceKind::kCpu;
  if (resources.device() == "cuda") request.kind = scheduler::DeviceKind::kCuda;
  return request;
}

void Core::RequestPlacement() {
  placement_at_ = std::min(placement_at_, std::max(clock_, placement_from_));
}

void Core::AddWorkers(bool idle, std::vector<scheduler::Worker>* workers,
                      std::vector<scheduler::Worker>* returning) const {
  for (const auto& [name, entry] : workers_) {
    // Expected back: its lease runs, and nobody wanted it away.
    const bool back = entry.session == 0 && !entry.lost && !entry.draining && !entry.leaving &&
                      cordoned_.count(name) == 0;
    if (entry.session == 0 && !back) continue;
    scheduler::Worker& worker = (back ? returning : workers)->emplace_back();
    worker.id = name;
    worker.accepts_jobs = AcceptsJobs(name, entry);
    worker.spans = !entry.hello.endpoint().address().empty();
    worker.model_paths.assign(entry.hello.model_paths().begin(), entry.hello.model_paths().end());
    for (const lemo::v1::Device& device : entry.hello.devices()) {
      if (device.kind() != lemo::v1::Device::CPU && device.kind() != lemo::v1::Device::CUDA) {
        continue;
      }
      worker.devices.push_back({device.index(),
                                device.kind() == lemo::v1::Device::CUDA
                                    ? scheduler::DeviceKind::kCuda
                                    : scheduler::DeviceKind::kCpu,
                                device.memory_bytes()});
      worker.devices.back().shares_bases = device.shares_bases();
      worker.devices.back().type = device.type();
    }
    if (idle) continue;
    for (const std::string& job : entry.jobs) {
      scheduler::Occupy(OccupantOf(jobs_.at(job).job), &worker);
    }
  }
}

scheduler::Outlook Core::MakeOutlook() const {
  scheduler::Outlook outlook;
  AddWorkers(/*idle=*/true, &outlook.workers, &outlook.returning);
  for (const auto& [name, record] : jobs_) {
    const Job::State state = record.job.state();
    if (state == Job::STARTING || state == Job::RUNNING) {
      outlook.occupants.push_back(OccupantOf(record.job));
    }
  }
  for (const QueueKey& key : queue_) {
    const JobRecord& record = jobs_.at(std::get<2>(key));
    outlook.queue.push_back({SchedulerRequest(record), SecondsLeft(record.job)});
  }
  return outlook;
}

void Core::Place() {
  placement_at_ = absl::InfiniteFuture();
  placement_from_ = queue_.size() <= kShortQueue
                        ? absl::InfinitePast()
                        : clock_ + kPauseAJob * static_cast<int64_t>(queue_.size());
  const bool may_raise = HasCuts();
  if (queue_.empty() && !may_raise) return;

  scheduler::Snapshot snapshot;
  AddWorkers(/*idle=*/false, &snapshot.workers, &snapshot.returning);
  for (const QueueKey& key : queue_) {
    const JobRecord& record = jobs_.at(std::get<2>(key));
    if (record.not_before > clock_) {
      placement_at_ = std::min(placement_at_, record.not_before);
    } else {
      snapshot.queue.push_back(SchedulerRequest(record));
    }
  }
  if (snapshot.queue.empty() && !may_raise) return;

  const scheduler::Decisions decisions = scheduler_->Decide(snapshot);
  for (const scheduler::Placement& placement : decisions.placements) {
    Start(jobs_.at(placement.job), placement);
  }
  const auto [waits_for_room, makers] = MakeRoom(decisions.waiting);
  for (const scheduler::Waiting& waiting : decisions.waiting) {
    Explain(
        jobs_.at(waiting.job), CodeOf(waiting.reason),
        waiting.job == waits_for_room ? absl::StrCat(waiting.text, "; ", makers) : waiting.text);
  }
}

}  // namespace lemo::coordinator
