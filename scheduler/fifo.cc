#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "scheduler/scheduler.h"

namespace lemo::scheduler {
namespace {

enum class DeviceUse {
  kFree,
  kBusy,
  kReserved
};  // reserved: free, but an earlier job waits for it

const char* Name(DeviceKind kind) { return kind == DeviceKind::kCuda ? "CUDA" : "CPU"; }

// "2 CUDA devices", "1 device".
std::string Wanted(const Request& request) {
  return absl::StrCat(request.ranks, request.kind.has_value() ? " " : "",
                      request.kind.has_value() ? Name(*request.kind) : "",
                      request.ranks == 1 ? " device" : " devices");
}

bool HasModel(const Worker& worker, const Request& request) {
  return request.model_path.empty() ||
         std::find(worker.model_paths.begin(), worker.model_paths.end(), request.model_path) !=
             worker.model_paths.end();
}

// A device that tells no memory is taken at its word that it fits.
bool HasMemory(const Device& device, const Request& request) {
  return device.memory_bytes == 0 || device.memory_bytes >= request.memory_bytes;
}

// Most devices of one wanted kind on the worker that `fits` is true of.
template <typename Fits>
int CountOfOneKind(const Worker& worker, const Request& request, Fits fits) {
  int cpu = 0;
  int cuda = 0;
  for (const Device& device : worker.devices) {
    if (request.kind.has_value() && device.kind != *request.kind) continue;
    if (fits(device)) ++(device.kind == DeviceKind::kCuda ? cuda : cpu);
  }
  return std::max(cpu, cuda);
}

bool CouldRun(const Worker& worker, const Request& request) {
  return CountOfOneKind(worker, request, [&](const Device& device) {
           return HasMemory(device, request);
         }) >= request.ranks;
}

class Cycle {
 public:
  explicit Cycle(const Snapshot& snapshot) : snapshot_(snapshot) {
    for (const Worker& worker : snapshot.workers) {
      std::vector<DeviceUse>& uses = uses_.emplace_back();
      for (const Device& device : worker.devices) {
        uses.push_back(device.busy ? DeviceUse::kBusy : DeviceUse::kFree);
      }
    }
  }

  // 1. Of the workers that can take the whole gang now, those that have its model before others,
  // the tightest. 2. Else, if an idle cluster could take it: it waits, and keeps what it could use
  // from later jobs. 3. Else: what is missing. Long queues are mostly of few kinds of jobs. Once
  // one waits, so do its equals behind it, for the same reason: what it could use is busy or kept.
  void Decide(const Request& request, Decisions& decisions) {
    const Demand demand = {request.ranks, request.kind, request.memory_bytes};
    if (auto equal = waiting_.find(demand); equal != waiting_.end()) {
      decisions.waiting.push_back({request.job, equal->second.reason, equal->second.text});
      return;
    }
    std::vector<size_t> places;  // devices of the worker at best
    size_t best = snapshot_.workers.size();
    size_t best_free = 0;
    bool best_has_model = false;
    bool could_run = false;
    bool free_but_reserved = false;
    int most_free = 0;
    for (size_t w = 0; w < snapshot_.workers.size(); ++w) {
      const Worker& worker = snapshot_.workers[w];
      if (!worker.accepts_jobs || !CouldRun(worker, request)) continue;
      could_run = true;
      for (DeviceKind kind : {DeviceKind::kCuda, DeviceKind::kCpu}) {
        if (request.kind.has_value() && kind != *request.kind) continue;
        size_t reserved = 0;
        std::vector<size_t> free = Free(w, kind, request, reserved);
        if (Enough(free.size() + reserved, request)) free_but_reserved = true;
        most_free = std::max(most_free, static_cast<int>(free.size() + reserved));
        if (!Enough(free.size(), request)) continue;
        const bool has_model = HasModel(worker, request);
        if (places.empty() || (has_model && !best_has_model) ||
            (has_model == best_has_model && free.size() < best_free)) {
          best = w;
          best_free = free.size();
          best_has_model = has_model;
          places = std::move(free);
        }
        break;  // a worker that has both gives its CUDA devices first
      }
    }
    if (!places.empty()) {
      decisions.placements.push_back(Take(request, best, places));
      return;
    }
    Waiting waiting = could_run ? Wait(request, free_but_reserved, most_free) : Missing(request);
    if (could_run) Reserve(request);
    waiting_.emplace(demand, waiting);
    decisions.waiting.push_back(std::move(waiting));
  }

 private:
  using Demand = std::tuple<int, std::optional<DeviceKind>, int64_t>;

  static bool Enough(size_t count, const Request& request) {
    return count >= static_cast<size_t>(request.ranks);
  }

  // Free fitting devices of `kind` on worker `w`, those with the least memory first; and how many
  // more there would be but for reservations.
  std::vector<size_t> Free(size_t w, DeviceKind kind, const Request& request,
                           size_t& reserved) const {
    const std::vector<Device>& devices = snapshot_.workers[w].devices;
    std::vector<size_t> free;
    for (size_t d = 0; d < devices.size(); ++d) {
      if (devices[d].kind != kind || !HasMemory(devices[d], request)) continue;
      if (uses_[w][d] == DeviceUse::kFree) free.push_back(d);
      if (uses_[w][d] == DeviceUse::kReserved) ++reserved;
    }
    std::stable_sort(free.begin(), free.end(), [&](size_t a, size_t b) {
      return devices[a].memory_bytes < devices[b].memory_bytes;
    });
    return free;
  }

  Placement Take(const Request& request, size_t w, const std::vector<size_t>& places) {
    Placement placement{request.job, snapshot_.workers[w].id, {}};
    for (int rank = 0; rank < request.ranks; ++rank) {
      uses_[w][places[rank]] = DeviceUse::kBusy;
      placement.devices.push_back(snapshot_.workers[w].devices[places[rank]].index);
    }
    return placement;
  }

  void Reserve(const Request& request) {
    for (size_t w = 0; w < snapshot_.workers.size(); ++w) {
      const Worker& worker = snapshot_.workers[w];
      if (!worker.accepts_jobs || !CouldRun(worker, request)) continue;
      for (DeviceKind kind : {DeviceKind::kCuda, DeviceKind::kCpu}) {
        if (request.kind.has_value() && kind != *request.kind) continue;
        // Devices of a kind of which the worker has too few are of no use to this gang.
        const int usable = CountOfOneKind(worker, request, [&](const Device& device) {
          return device.kind == kind && HasMemory(device, request);
        });
        if (usable < request.ranks) continue;
        for (size_t d = 0; d < worker.devices.size(); ++d) {
          if (worker.devices[d].kind == kind && HasMemory(worker.devices[d], request) &&
              uses_[w][d] == DeviceUse::kFree) {
            uses_[w][d] = DeviceUse::kReserved;
          }
        }
      }
    }
  }

  static Waiting Wait(const Request& request, bool free_but_reserved, int most_free) {
    if (free_but_reserved) {
      return {request.job, WaitReason::kBehindOthers,
              "an earlier job waits for the devices that it could use"};
    }
    if (request.ranks <= 1) {
      return {request.job, WaitReason::kDevicesBusy,
              absl::StrCat("needs ", Wanted(request), "; all that fit are busy")};
    }
    return {request.job, WaitReason::kDevicesBusy,
            absl::StrCat("needs ", Wanted(request), " free at once on one worker; at most ",
                         most_free, most_free == 1 ? " is" : " are", " free")};
  }

  Waiting Missing(const Request& request) const {
    if (snapshot_.workers.empty()) {
      return {request.job, WaitReason::kNoWorker, "no worker is connected"};
    }
    int cordoned = 0;
    int most = 0;         // wanted devices on one worker
    int most_memory = 0;  // those that are large enough
    int64_t largest_bytes = 0;
    for (const Worker& worker : snapshot_.workers) {
      if (!worker.accepts_jobs && CouldRun(worker, request)) ++cordoned;
      most = std::max(most, CountOfOneKind(worker, request, [](const Device&) { return true; }));
      most_memory =
          std::max(most_memory, CountOfOneKind(worker, request, [&](const Device& device) {
                     largest_bytes = std::max(largest_bytes, device.memory_bytes);
                     return HasMemory(device, request);
                   }));
    }
    if (cordoned > 0) {
      return {
          request.job, WaitReason::kWorkersCordoned,
          absl::StrCat(cordoned, cordoned == 1 ? " worker" : " workers",
                       " would fit, but take no new jobs (cordoned, draining or out of reach)")};
    }
    if (most < request.ranks) {
      return {request.job, WaitReason::kNoSuchDevice,
              absl::StrCat("needs ", Wanted(request), " on one worker; the largest has ", most)};
    }
    constexpr double kGiB = 1 << 30;
    return {request.job, WaitReason::kMemoryTooSmall,
            absl::StrFormat("needs %s with %.1f GiB each on one worker; %d of that size %s there, "
                            "the largest device has %.1f GiB",
                            Wanted(request), request.memory_bytes / kGiB, most_memory,
                            most_memory == 1 ? "is" : "are", largest_bytes / kGiB)};
  }

  const Snapshot& snapshot_;
  std::vector<std::vector<DeviceUse>> uses_;  // of the devices of each worker
  std::map<Demand, Waiting> waiting_;         // the first of each
};

}  // namespace

Decisions FifoScheduler::Decide(const Snapshot& snapshot) const {
  Decisions decisions;
  Cycle cycle(snapshot);
  for (const Request& request : snapshot.queue) cycle.Decide(request, decisions);
  return decisions;
}

}  // namespace lemo::scheduler
