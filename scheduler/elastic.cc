#include "scheduler/elastic.h"

#include <algorithm>
#include <optional>
#include <set>
#include <span>
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
         (request.type.empty() || request.type == device.type) &&
         device.memory_bytes >= request.memory_bytes &&
         Shares(device, request.shares, request.memory_bytes);
}

// A device that a rank of the waiting job could have.
struct Place {
  const Worker* worker;
  const Device* device;
  int64_t missing = 0;  // bytes; 0: there is room
  int64_t taken = 0;    // by cuts for this place alone, over all ranks of those that are cut
};

// Cuts that make room on one place after the other. What one of them frees of a gang is free on
// its other devices, too.
class Cutter {
 public:
  explicit Cutter(const std::vector<Elastic>& elastic)
      : elastic_(elastic), cuts_(elastic.size(), 0) {}

  // False: not so much can be cut there.
  bool MakeRoom(const Place& place) {
    int64_t missing = place.missing;
    if (missing == 0) return true;
    std::vector<size_t> here;
    for (size_t j = 0; j < elastic_.size(); ++j) {
      if (!IsOn(elastic_[j], *place.worker, *place.device)) continue;
      here.push_back(j);
      const Elastic& job = elastic_[j];
      const int64_t coming = job.occupant.memory_bytes - SoonBytes(job) + cuts_[j];
      if (coming == 0) continue;
      missing -= coming;
      from_.insert(job.occupant.job);
    }
    // Few jobs much rather than many a little.
    std::stable_sort(here.begin(), here.end(),
                     [this](size_t a, size_t b) { return Spare(a) > Spare(b); });
    for (const size_t j : here) {
      if (missing <= 0) break;
      const int64_t cut = std::min(missing, Spare(j));
      if (cut == 0) break;
      cuts_[j] += cut;
      from_.insert(elastic_[j].occupant.job);
      missing -= cut;
    }
    return missing <= 0;
  }

  int64_t taken() const {
    int64_t bytes = 0;
    for (size_t j = 0; j < cuts_.size(); ++j) bytes += RanksOf(elastic_[j]) * cuts_[j];
    return bytes;
  }

  Cuts Result() const {
    Cuts cuts{{}, {from_.begin(), from_.end()}};
    for (size_t j = 0; j < cuts_.size(); ++j) {
      if (cuts_[j] == 0) continue;
      cuts.jobs.push_back({elastic_[j].occupant.job, SoonBytes(elastic_[j]) - cuts_[j]});
    }
    return cuts;
  }

 private:
  int64_t Spare(size_t j) const { return SpareBytes(elastic_[j]) - cuts_[j]; }

  const std::vector<Elastic>& elastic_;
  std::vector<int64_t> cuts_;  // of each rank
  std::set<std::string> from_;
};

// Places of a kind on the worker where room is or can be made, the cheapest first.
std::vector<Place> PlacesOn(const Worker& worker, DeviceKind kind,
                            const std::vector<Elastic>& elastic, const Request& request) {
  std::vector<Place> places;
  for (const Device& device : worker.devices) {
    if (device.kind != kind || !Wants(request, device)) continue;
    const int64_t missing = device.UsedBytes() +
                            AddedBytes(device, request.memory_bytes, request.base) -
                            device.memory_bytes;
    Place place{&worker, &device, std::max<int64_t>(0, missing)};
    Cutter cutter(elastic);
    if (!cutter.MakeRoom(place)) continue;
    place.taken = cutter.taken();
    places.push_back(place);
  }
  std::stable_sort(places.begin(), places.end(),
                   [](const Place& a, const Place& b) { return a.taken < b.taken; });
  return places;
}

// Those for a gang over several workers: of each as many as are a multiple, the cheapest first.
std::vector<Place> OverSeveral(const std::vector<std::vector<Place>>& by_worker, size_t ranks,
                               size_t multiple) {
  struct Group {
    int64_t taken = 0;
    std::span<const Place> places;
  };
  std::vector<Group> groups;
  for (const std::vector<Place>& places : by_worker) {
    for (size_t first = 0; first + multiple <= places.size(); first += multiple) {
      Group& group = groups.emplace_back();
      group.places = std::span(places).subspan(first, multiple);
      for (const Place& place : group.places) group.taken += place.taken;
    }
  }
  std::stable_sort(groups.begin(), groups.end(),
                   [](const Group& a, const Group& b) { return a.taken < b.taken; });
  std::vector<Place> chosen;
  for (const Group& group : groups) {
    if (chosen.size() >= ranks) break;
    chosen.insert(chosen.end(), group.places.begin(), group.places.end());
  }
  return chosen;
}

}  // namespace

Cuts PlanCuts(const std::vector<Worker>& workers, const std::vector<Elastic>& elastic,
              const Request& request) {
  const auto ranks = static_cast<size_t>(std::max(request.ranks, 1));
  std::optional<Cutter> best;
  const auto look_at = [&](std::vector<Place> places) {
    if (places.size() < ranks) return;
    places.resize(ranks);
    Cutter cutter(elastic);
    for (const Place& place : places) {
      if (!cutter.MakeRoom(place)) return;
    }
    if (!best || cutter.taken() < best->taken()) best.emplace(std::move(cutter));
  };
  // As the scheduler will: on one worker if that is possible, else over those that span.
  for (const DeviceKind kind : {DeviceKind::kCuda, DeviceKind::kCpu}) {
    std::vector<std::vector<Place>> spanning;
    for (const Worker& worker : workers) {
      if (!worker.accepts_jobs) continue;
      std::vector<Place> places = PlacesOn(worker, kind, elastic, request);
      look_at(places);
      if (worker.spans) spanning.push_back(std::move(places));
    }
    if (best || ranks == 1) continue;
    for (const size_t multiple : {static_cast<size_t>(std::max(request.multiple, 1)), size_t{1}}) {
      if (!best) look_at(OverSeveral(spanning, ranks, multiple));
    }
  }
  return best ? best->Result() : Cuts();
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
