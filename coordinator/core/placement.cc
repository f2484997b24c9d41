// When the scheduler is asked, and what becomes of its answer.
#include <algorithm>
#include <set>
#include <utility>

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

scheduler::Request RequestOf(const JobRecord& record) {
  const lemo::v1::ResourceSpec& resources = record.job.spec().resources();
  scheduler::Request request;
  request.job = record.job.name();
  request.ranks = resources.has_ranks() ? std::max(resources.ranks(), 1) : 1;
  request.memory_bytes = resources.memory_bytes();
  request.model_path = record.model_path;
  if (resources.device() == "cpu") request.kind = scheduler::DeviceKind::kCpu;
  if (resources.device() == "cuda") request.kind = scheduler::DeviceKind::kCuda;
  return request;
}

}  // namespace

void Core::RequestPlacement() {
  placement_at_ = std::min(placement_at_, std::max(clock_, placement_from_));
}

void Core::Place() {
  placement_at_ = absl::InfiniteFuture();
  placement_from_ = queue_.size() <= kShortQueue
                        ? absl::InfinitePast()
                        : clock_ + kPauseAJob * static_cast<int64_t>(queue_.size());
  if (queue_.empty()) return;

  scheduler::Snapshot snapshot;
  for (const auto& [name, entry] : workers_) {
    if (entry.session == 0) continue;
    std::set<int> busy;
    for (const std::string& job : entry.jobs) {
      const std::vector<int>& devices = jobs_.at(job).devices;
      busy.insert(devices.begin(), devices.end());
    }
    scheduler::Worker& worker = snapshot.workers.emplace_back();
    worker.id = name;
    worker.accepts_jobs = AcceptsJobs(name, entry);
    worker.model_paths.assign(entry.hello.model_paths().begin(), entry.hello.model_paths().end());
    for (const lemo::v1::Device& device : entry.hello.devices()) {
      if (device.kind() != lemo::v1::Device::CPU && device.kind() != lemo::v1::Device::CUDA) {
        continue;
      }
      worker.devices.push_back({device.index(),
                                device.kind() == lemo::v1::Device::CUDA
                                    ? scheduler::DeviceKind::kCuda
                                    : scheduler::DeviceKind::kCpu,
                                device.memory_bytes(), busy.count(device.index()) > 0});
    }
  }
  for (const QueueKey& key : queue_) {
    const JobRecord& record = jobs_.at(std::get<2>(key));
    if (record.not_before > clock_) {
      placement_at_ = std::min(placement_at_, record.not_before);
    } else {
      snapshot.queue.push_back(RequestOf(record));
    }
  }
  if (snapshot.queue.empty()) return;

  const scheduler::Decisions decisions = scheduler_->Decide(snapshot);
  for (const scheduler::Placement& placement : decisions.placements) {
    Start(jobs_.at(placement.job), placement.worker, placement.devices);
  }
  for (const scheduler::Waiting& waiting : decisions.waiting) {
    Explain(jobs_.at(waiting.job), CodeOf(waiting.reason), waiting.text);
  }
}

}  // namespace lemo::coordinator
