#include "scheduler/elastic.h"

#include <algorithm>
#include <utility>

namespace lemo::scheduler {
namespace {

// Whether a rank of the job is on this device, and shares it. No two are on one.
bool IsOn(const Elastic& job, const Worker& worker, const Device& device) {
  if (!Shares(device, job.occupant.shares, job.occupant.memory_bytes)) return false;
  return std::any_of(job.occupant.parts.begin(), job.occupant.parts.end(), [&](const Part& part) {
    return part.worker == worker.id &&
           std::count(part.devices.begin(), part.devices.end(), device.index) > 0;
  });
}

int64_t RanksOf(const Elastic& job) {
  int64_t ranks = 0;
  for (const Part& part : job.occupant.parts) ranks += std::ssize(part.devices);
  return ranks;
}

// What it will have once it has done what it was asked.
int64_t SoonBytes(const Elastic& job) {
  return job.asked_bytes > 0 ? std::min(job.asked_bytes, job.occupant.memory_bytes)
                             : job.occupant.memory_bytes;
}

// Of each rank.
int64_t SpareBytes(const Elastic& job) {
  // A cut never reaches into the base: the others have it too.
  const int64_t least = std::max(job.least_bytes, job.occupant.base.bytes + 1);
  return job.least_bytes > 0 ? std::max<int64_t>(0, SoonBytes(job) - least) : 0;
}

bool Wants(const Request& request, const Device& device) {
  return (!request.kind || *request.kind == device.kind) && !device.busy &&
         device.memory_bytes >= request.memory_bytes &&
         Shares(device, request.shares, request.memory_bytes);
}

}  // namespace

Cuts PlanCuts(const std::vector<Worker>& workers, const std::vector<Elastic>& elastic,
              const Request& request) {
  Cuts best;
  int64_t best_taken = 0;
  if (request.ranks != 1) return best;
  for (const Worker& worker : workers) {
    if (!worker.accepts_jobs) continue;
    for (const Device& device : worker.devices) {
      if (!Wants(request, device)) continue;
      int64_t missing = device.UsedBytes() +
                        AddedBytes(device, request.memory_bytes, request.base) -
                        device.memory_bytes;
      if (missing <= 0) continue;  // it waits for something else
      Cuts cuts;
      std::vector<const Elastic*> here;
      for (const Elastic& job : elastic) {
        if (!IsOn(job, worker, device)) continue;
        here.push_back(&job);
        const int64_t coming = job.occupant.memory_bytes - SoonBytes(job);
        if (coming == 0) continue;
        missing -= coming;
        cuts.from.push_back(job.occupant.job);
      }
      // Few jobs much rather than many a little.
      std::stable_sort(here.begin(), here.end(), [](const Elastic* a, const Elastic* b) {
        return SpareBytes(*a) > SpareBytes(*b);
      });
      int64_t taken = 0;
      for (const Elastic* job : here) {
        if (missing <= 0) break;
        const int64_t cut = std::min(missing, SpareBytes(*job));
        if (cut == 0) break;
        cuts.jobs.push_back({job->occupant.job, SoonBytes(*job) - cut});
        cuts.from.push_back(job->occupant.job);
        missing -= cut;
        taken += RanksOf(*job) * cut;
      }
      if (missing > 0) continue;
      if (best.from.empty() || taken < best_taken) {
        best = std::move(cuts);
        best_taken = taken;
      }
    }
  }
  std::sort(best.from.begin(), best.from.end());
  best.from.erase(std::unique(best.from.begin(), best.from.end()), best.from.end());
  return best;
}

std::vector<Allotment> PlanRaises(std::vector<Worker> workers,
                                  const std::vector<Elastic>& elastic) {
  std::vector<Allotment> raises;
  for (const Elastic& job : elastic) {
    if (job.asked_bytes > 0 || job.occupant.memory_bytes >= job.most_bytes) continue;
    std::vector<Device*> devices;
    int64_t more = job.most_bytes - job.occupant.memory_bytes;
    for (Worker& worker : workers) {
      for (Device& device : worker.devices) {
        if (!IsOn(job, worker, device)) continue;
        devices.push_back(&device);
        more = std::min(more, std::max<int64_t>(0, device.memory_bytes - device.UsedBytes()));
      }
    }
    // Of a device that is not there now nobody knows what it has left.
    if (std::ssize(devices) < RanksOf(job) || more == 0) continue;
    for (Device* device : devices) device->shared_bytes += more;
    raises.push_back({job.occupant.job, job.occupant.memory_bytes + more});
  }
  return raises;
}

}  // namespace lemo::scheduler
