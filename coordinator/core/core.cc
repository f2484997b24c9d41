#include "coordinator/core/core.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "coordinator/core/timestamp.h"

namespace lemo::coordinator {

using lemo::v1::Job;

Core::Core(const CoreOptions& options, const scheduler::Scheduler* scheduler)
    : options_(options), scheduler_(scheduler) {}

std::vector<Effect> Core::Recover(std::vector<JobRecord> jobs,
                                  const std::set<std::string>& cordoned, absl::Time now) {
  Advance(now);
  cordoned_ = cordoned;
  // The former coordinator may have renewed a lease just before it went.
  const absl::Time grace_end = clock_ + std::max(options_.recovery_grace, options_.lease);
  for (JobRecord& given : jobs) {
    const std::string name = given.job.name();
    JobRecord& record = jobs_[name];
    record = std::move(given);
    last_number_ = std::max(last_number_, record.number);
    switch (record.job.state()) {
      case Job::VALIDATING:
      case Job::PLANNING:
        effects_.push_back(StartValidation{record});
        break;
      case Job::QUEUED:
        // A clock that went back since must not make a back-off longer than any is.
        record.not_before = std::min(record.not_before, clock_ + absl::Minutes(5));
        queue_.emplace(record.queued_time, record.number, name);
        break;
      case Job::STARTING:
      case Job::RUNNING:
        // A clock that went back since must not put its start into the future.
        record.running_since = std::min(record.running_since, clock_);
        if (record.job.nodes().empty()) {  // of an older version
          lemo::v1::GangNode& node = *record.job.add_nodes();
          node.set_worker(record.job.worker());
          for (const int device : record.devices) node.add_devices(device);
        }
        for (const lemo::v1::GangNode& node : record.job.nodes()) {
          WorkerEntry& worker = workers_[node.worker()];
          worker.hello.set_worker(node.worker());
          worker.lease_end = grace_end;
          worker.jobs.insert(name);
        }
        lease_check_at_ = std::min(lease_check_at_, grace_end);
        break;
      case Job::PAUSED:
        break;
      default:
        jobs_.erase(name);  // it has ended
    }
  }
  // Workers are about to dial in: to tell all jobs in between that there is none would be noise.
  if (!queue_.empty()) {
    placement_from_ = clock_ + options_.recovery_grace;
    RequestPlacement();
  }
  return Flush();
}

Core::Outcome Core::Step(const Event& event, absl::Time now) {
  Advance(now);
  Outcome outcome;
  outcome.status = std::visit([this](const auto& specific) { return On(specific); }, event);
  CheckLeases();
  if (clock_ >= placement_at_) Place();
  outcome.effects = Flush();
  return outcome;
}

void Core::Advance(absl::Time now) {
  if (now_ == absl::InfinitePast()) {
    clock_ = now;
  } else if (now > now_) {
    clock_ +=
        std::min(now - now_, std::max(Wake() - clock_, absl::ZeroDuration()) + options_.heartbeat);
  }
  now_ = now;
}

absl::Time Core::Wake() const {
  absl::Time wake = std::min(placement_at_, lease_check_at_);
  if (lease_check_at_ != absl::InfiniteFuture()) {
    wake = std::min(wake, clock_ + options_.heartbeat);
  }
  return wake;
}

absl::Time Core::NextWake() const {
  const absl::Time wake = Wake();
  return wake == absl::InfiniteFuture() ? wake : now_ + (wake - clock_);
}

std::vector<Effect> Core::Flush() {
  std::vector<Effect> all;
  all.reserve(changes_.size() + effects_.size());
  for (Change& change : changes_) {
    auto found = jobs_.find(change.job);
    Job& job = found->second.job;
    *job.mutable_update_time() = ToTimestamp(now_);
    int64_t changes = 0;
    (void)absl::SimpleAtoi(job.etag(), &changes);
    job.set_etag(absl::StrCat(changes + 1));
    const bool ended = job.state() == Job::SUCCEEDED || job.state() == Job::FAILED ||
                       job.state() == Job::CANCELLED;
    if (ended) {
      all.push_back(Persist{std::move(found->second), std::move(change.events)});
      jobs_.erase(found);
    } else {
      all.push_back(Persist{found->second, std::move(change.events)});
    }
  }
  changes_.clear();
  change_of_.clear();
  for (Effect& effect : effects_) all.push_back(std::move(effect));
  effects_.clear();
  return all;
}

int RanksOf(const JobRecord& record) {
  int ranks = 0;
  for (const lemo::v1::GangNode& node : record.job.nodes()) ranks += node.devices_size();
  return ranks;
}

const JobRecord* Core::Find(const std::string& job) const {
  auto found = jobs_.find(job);
  return found == jobs_.end() ? nullptr : &found->second;
}

std::vector<const JobRecord*> Core::Queue() const {
  std::vector<const JobRecord*> queue;
  queue.reserve(queue_.size());
  for (const QueueKey& key : queue_) queue.push_back(&jobs_.at(std::get<2>(key)));
  return queue;
}

bool Core::UsesFile(const std::string& file) const {
  return std::any_of(jobs_.begin(), jobs_.end(), [&](const auto& entry) {
    const std::vector<lemo::v1::InputFile>& files = entry.second.files;
    return std::any_of(files.begin(), files.end(),
                       [&](const lemo::v1::InputFile& input) { return input.name() == file; });
  });
}

}  // namespace lemo::coordinator
