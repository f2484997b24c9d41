#include <algorithm>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "scheduler/occupancy.h"
#include "scheduler/scheduler.h"

namespace lemo::scheduler {
namespace {

// A device as it is after what was decided so far.
struct DeviceUse {
  Device device;
  bool reserved = false;  // not busy, but an earlier job waits for it
};

const char* Name(DeviceKind kind) { return kind == DeviceKind::kCuda ? "CUDA" : "CPU"; }

// "2 CUDA devices", "1 device", "1 device of type NVIDIA H200".
std::string Wanted(const Request& request) {
  return absl::StrCat(request.ranks, request.kind.has_value() ? " " : "",
                      request.kind.has_value() ? Name(*request.kind) : "",
                      request.ranks == 1 ? " device" : " devices",
                      request.type.empty() ? "" : " of type ", request.type);
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

bool IsOfType(const Device& device, const Request& request) {
  return request.type.empty() || device.type == request.type;
}

// Whether a rank of the job could have it, if it were idle.
bool Suits(const Device& device, const Request& request) {
  return IsOfType(device, request) && HasMemory(device, request);
}

// Whether a rank of the job fits beside what uses the device now.
bool HasRoom(const Device& device, const Request& request) {
  if (device.busy || !IsOfType(device, request)) return false;
  if (device.shared_bytes == 0) return HasMemory(device, request);
  return Shares(device, request.shares, request.memory_bytes) &&
         device.memory_bytes - device.UsedBytes() >=
             AddedBytes(device, request.memory_bytes, request.base);
}

bool HasBase(const Device& device, const Request& request) {
  return std::any_of(device.bases.begin(), device.bases.end(),
                     [&](const Base& base) { return base.name == request.base.name; });
}

constexpr DeviceKind kKinds[] = {DeviceKind::kCuda, DeviceKind::kCpu};  // in order of preference

bool Wants(const Request& request, DeviceKind kind) {
  return !request.kind.has_value() || *request.kind == kind;
}

// Devices of one kind on the worker that `fits` is true of.
template <typename Fits>
int CountOf(const Worker& worker, DeviceKind kind, Fits fits) {
  return static_cast<int>(
      std::count_if(worker.devices.begin(), worker.devices.end(),
                    [&](const Device& device) { return device.kind == kind && fits(device); }));
}

// Most devices of one wanted kind on the worker that `fits` is true of.
template <typename Fits>
int CountOfOneKind(const Worker& worker, const Request& request, Fits fits) {
  int most = 0;
  for (const DeviceKind kind : kKinds) {
    if (Wants(request, kind)) most = std::max(most, CountOf(worker, kind, fits));
  }
  return most;
}

int Usable(const Worker& worker, DeviceKind kind, const Request& request) {
  return CountOf(worker, kind, [&](const Device& device) { return Suits(device, request); });
}

bool CouldRun(const Worker& worker, const Request& request) {
  return CountOfOneKind(worker, request, [&](const Device& device) {
           return Suits(device, request);
         }) >= request.ranks;
}

using Workers = std::vector<const Worker*>;

// Ranks that those workers could take between them, if idle.
int Capacity(const Workers& workers, DeviceKind kind, const Request& request) {
  int together = 0;
  for (const Worker* worker : workers) {
    if (worker->spans) together += Usable(*worker, kind, request);
  }
  return together;
}

class Cycle {
 public:
  explicit Cycle(const Snapshot& snapshot) : snapshot_(snapshot) {
    for (const Worker& worker : snapshot.workers) {
      std::vector<DeviceUse>& uses = uses_.emplace_back();
      for (const Device& device : worker.devices) {
        uses.push_back({device, false});
      }
      if (worker.accepts_jobs) accepting_.push_back(&worker);
    }
  }

  // 1. A job that may shrink asks for as many ranks as there could be. 2. Of the workers that can
  // take the whole gang now, those that have its model before others, the tightest. 3. Else as few
  // as possible of those that can take it together. 4. Else, if an idle cluster could take it: it
  // waits, and keeps what it could use from later jobs. 5. Else: what is missing. Long queues are
  // mostly of few kinds of jobs. Once one waits, so do its equals behind it, for the same reason:
  // what it could use is busy or kept.
  void Decide(const Request& wanted, Decisions& decisions) {
    const Demand demand = {wanted.ranks,     wanted.min_ranks,    wanted.multiple,
                           wanted.kind,      wanted.memory_bytes, wanted.shares,
                           wanted.base.name, wanted.base.bytes,   wanted.type};
    if (auto equal = waiting_.find(demand); equal != waiting_.end()) {
      decisions.waiting.push_back({wanted.job, equal->second.reason, equal->second.text});
      return;
    }
    Request request = wanted;
    request.ranks = PossibleRanks(wanted);
    std::optional<Placement> placement = OnOne(request);
    if (!placement) placement = OverSeveral(request);
    if (placement) {
      decisions.placements.push_back(*std::move(placement));
      return;
    }
    const bool could_run = CouldRunSomewhere(request);
    Waiting waiting = could_run ? Wait(request) : Missing(request);
    if (could_run) Reserve(request);
    waiting_.emplace(demand, waiting);
    decisions.waiting.push_back(std::move(waiting));
  }

 private:
  using Demand = std::tuple<int, int, int, std::optional<DeviceKind>, int64_t, bool, std::string,
                            int64_t, std::string>;

  static bool Enough(size_t count, const Request& request) {
    return count >= static_cast<size_t>(request.ranks);
  }

  int PossibleRanks(const Request& request) const {
    const int least = request.min_ranks > 0 ? request.min_ranks : request.ranks;
    if (least >= request.ranks) return request.ranks;
    Workers there = accepting_;
    for (const Worker& worker : snapshot_.returning) there.push_back(&worker);
    int most = 0;
    for (const DeviceKind kind : kKinds) {
      if (!Wants(request, kind)) continue;
      most = std::max(most, Capacity(there, kind, request));
      for (const Worker* worker : there) most = std::max(most, Usable(*worker, kind, request));
    }
    if (most >= request.ranks) return request.ranks;
    const int fewer = most - most % std::max(request.multiple, 1);
    return fewer >= least ? fewer : request.ranks;
  }

  // Fitting devices of `kind` on worker `w` that have room: idle ones first, then those with the
  // job's base, of each those with the least room; and how many more there would be but for
  // reservations.
  std::vector<size_t> Free(size_t w, DeviceKind kind, const Request& request,
                           size_t& reserved) const {
    const std::vector<DeviceUse>& uses = uses_[w];
    std::vector<size_t> free;
    for (size_t d = 0; d < uses.size(); ++d) {
      if (uses[d].device.kind != kind || !HasRoom(uses[d].device, request)) continue;
      if (uses[d].reserved) {
        ++reserved;
      } else {
        free.push_back(d);
      }
    }
    const auto order = [&](size_t d) {
      const Device& device = uses[d].device;
      return std::make_tuple(device.shared_bytes > 0, !HasBase(device, request),
                             device.memory_bytes - device.UsedBytes());
    };
    std::stable_sort(free.begin(), free.end(),
                     [&](size_t a, size_t b) { return order(a) < order(b); });
    return free;
  }

  // Of the devices that the job would take, those that others are on.
  size_t Shared(size_t w, const std::vector<size_t>& free, const Request& request) const {
    const auto end = free.begin() + std::min<std::ptrdiff_t>(request.ranks, std::ssize(free));
    return static_cast<size_t>(std::count_if(
        free.begin(), end, [&](size_t d) { return uses_[w][d].device.shared_bytes > 0; }));
  }

  std::optional<Placement> OnOne(const Request& request) {
    std::vector<size_t> places;  // devices of the worker at best
    size_t best = snapshot_.workers.size();
    // Fewest devices that others are on, then with the model, then the tightest.
    std::tuple<size_t, bool, size_t> best_rank;
    for (size_t w = 0; w < snapshot_.workers.size(); ++w) {
      const Worker& worker = snapshot_.workers[w];
      if (!worker.accepts_jobs || !CouldRun(worker, request)) continue;
      for (const DeviceKind kind : kKinds) {
        if (!Wants(request, kind)) continue;
        size_t reserved = 0;
        std::vector<size_t> free = Free(w, kind, request, reserved);
        if (!Enough(free.size(), request)) continue;
        const std::tuple<size_t, bool, size_t> rank = {Shared(w, free, request),
                                                       !HasModel(worker, request), free.size()};
        if (places.empty() || rank < best_rank) {
          best = w;
          best_rank = rank;
          places = std::move(free);
        }
        break;  // a worker that has both gives its CUDA devices first
      }
    }
    if (places.empty()) return std::nullopt;
    places.resize(static_cast<size_t>(request.ranks));
    return Placement{request.job, {Take(best, places, request)}};
  }

  // What one worker could give to a gang over several.
  struct Offer {
    size_t worker;
    bool has_model;
    std::vector<size_t> free;
  };

  // The largest first, so that they are few; the last is the tightest that has what is left.
  std::optional<Placement> OverSeveral(const Request& request) {
    if (request.ranks < 2) return std::nullopt;
    for (const size_t multiple : {static_cast<size_t>(std::max(request.multiple, 1)), size_t{1}}) {
      for (const DeviceKind kind : kKinds) {
        if (!Wants(request, kind)) continue;
        std::vector<Offer> offers = Offers(request, kind, multiple);
        std::vector<Offer> chosen;
        size_t left = static_cast<size_t>(request.ranks);
        while (left > 0 && !offers.empty()) {
          auto best = offers.begin();
          for (auto offer = offers.begin(); offer != offers.end(); ++offer) {
            if (offer->free.size() >= left &&
                (best->free.size() < left || offer->free.size() < best->free.size())) {
              best = offer;
            }
          }
          best->free.resize(std::min(best->free.size(), left));
          left -= best->free.size();
          chosen.push_back(std::move(*best));
          offers.erase(best);
        }
        if (left > 0) continue;
        Placement placement{request.job, {}};
        for (const Offer& offer : chosen) {
          placement.parts.push_back(Take(offer.worker, offer.free, request));
        }
        return placement;
      }
    }
    return std::nullopt;
  }

  std::vector<Offer> Offers(const Request& request, DeviceKind kind, size_t multiple) const {
    std::vector<Offer> offers;
    for (size_t w = 0; w < snapshot_.workers.size(); ++w) {
      const Worker& worker = snapshot_.workers[w];
      if (!worker.accepts_jobs || !worker.spans) continue;
      size_t reserved = 0;
      std::vector<size_t> free = Free(w, kind, request, reserved);
      free.resize(free.size() - free.size() % multiple);
      if (!free.empty()) offers.push_back({w, HasModel(worker, request), std::move(free)});
    }
    std::stable_sort(offers.begin(), offers.end(), [](const Offer& a, const Offer& b) {
      return a.free.size() != b.free.size() ? a.free.size() > b.free.size()
                                            : a.has_model > b.has_model;
    });
    return offers;
  }

  Part Take(size_t w, const std::vector<size_t>& places, const Request& request) {
    Part part{snapshot_.workers[w].id, {}};
    for (const size_t place : places) {
      Device& device = uses_[w][place].device;
      Occupy(request.memory_bytes, request.base, request.shares, &device);
      part.devices.push_back(device.index);
    }
    return part;
  }

  bool CouldRunTogether(const Request& request, DeviceKind kind) const {
    return request.ranks > 1 && Wants(request, kind) &&
           Capacity(accepting_, kind, request) >= request.ranks;
  }

  bool CouldRunSomewhere(const Request& request) const {
    return CouldRunTogether(request, DeviceKind::kCuda) ||
           CouldRunTogether(request, DeviceKind::kCpu) ||
           std::any_of(accepting_.begin(), accepting_.end(),
                       [&](const Worker* worker) { return CouldRun(*worker, request); });
  }

  void Reserve(const Request& request) {
    for (size_t w = 0; w < snapshot_.workers.size(); ++w) {
      const Worker& worker = snapshot_.workers[w];
      if (!worker.accepts_jobs) continue;
      for (const DeviceKind kind : kKinds) {
        if (!Wants(request, kind)) continue;
        // Devices of a kind of which there are too few are of no use to this gang.
        if (Usable(worker, kind, request) < request.ranks &&
            !(worker.spans && CouldRunTogether(request, kind))) {
          continue;
        }
        for (size_t d = 0; d < worker.devices.size(); ++d) {
          if (worker.devices[d].kind == kind && Suits(worker.devices[d], request) &&
              !uses_[w][d].device.busy) {
            uses_[w][d].reserved = true;
          }
        }
      }
    }
  }

  Waiting Wait(const Request& request) const {
    size_t most_free = 0;  // or kept for an earlier job
    bool several = false;  // it could have them on several workers
    for (const DeviceKind kind : kKinds) {
      if (!Wants(request, kind)) continue;
      const bool together = CouldRunTogether(request, kind);
      several |= together;
      size_t sum = 0;
      for (size_t w = 0; w < snapshot_.workers.size(); ++w) {
        const Worker& worker = snapshot_.workers[w];
        if (!worker.accepts_jobs) continue;
        size_t reserved = 0;
        const size_t free = Free(w, kind, request, reserved).size() + reserved;
        if (CouldRun(worker, request)) most_free = std::max(most_free, free);
        if (together && worker.spans) sum += free;
      }
      most_free = std::max(most_free, sum);
    }
    if (Enough(most_free, request)) {
      return {request.job, WaitReason::kBehindOthers,
              "an earlier job waits for the devices that it could use"};
    }
    if (request.ranks <= 1) {
      return {request.job, WaitReason::kDevicesBusy,
              absl::StrCat("needs ", Wanted(request), "; all that fit are busy",
                           request.shares ? " or have too little memory left" : "")};
    }
    return {
        request.job, WaitReason::kDevicesBusy,
        absl::StrCat("needs ", Wanted(request), " free at once", several ? "" : " on one worker",
                     "; at most ", most_free, most_free == 1 ? " is" : " are", " free")};
  }

  Waiting Missing(const Request& request) const {
    if (snapshot_.workers.empty()) {
      return {request.job, WaitReason::kNoWorker, "no worker is connected"};
    }
    int cordoned = 0;
    int most = 0;         // wanted devices on one worker
    int most_memory = 0;  // those that are large enough
    int64_t largest_bytes = 0;
    Workers all;
    for (const Worker& worker : snapshot_.workers) {
      all.push_back(&worker);
      if (!worker.accepts_jobs && CouldRun(worker, request)) ++cordoned;
      most = std::max(most, CountOfOneKind(worker, request, [&](const Device& device) {
                        return IsOfType(device, request);
                      }));
      most_memory =
          std::max(most_memory, CountOfOneKind(worker, request, [&](const Device& device) {
                     if (!IsOfType(device, request)) return false;
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
    if (request.ranks > 1) {
      if (auto waiting = MissingTogether(request, all)) return *std::move(waiting);
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

  // Where workers could take the gang together if they were more, or took jobs.
  std::optional<Waiting> MissingTogether(const Request& request, Workers all) const {
    for (const Worker& worker : snapshot_.returning) all.push_back(&worker);
    int spanning = 0;
    int most = 0;
    for (const Worker* worker : all) spanning += worker->spans ? 1 : 0;
    for (const DeviceKind kind : kKinds) {
      if (Wants(request, kind)) most = std::max(most, Capacity(all, kind, request));
    }
    if (spanning < 2) return std::nullopt;
    if (most >= request.ranks) {
      return Waiting{request.job, WaitReason::kWorkersCordoned,
                     absl::StrCat("needs ", Wanted(request), "; some of the ", most,
                                  " that fit are on workers that take no new jobs (cordoned, "
                                  "draining or out of reach)")};
    }
    return Waiting{
        request.job, WaitReason::kNoSuchDevice,
        absl::StrCat("needs ", Wanted(request),
                     request.memory_bytes > 0
                         ? absl::StrFormat(" with %.1f GiB each",
                                           static_cast<double>(request.memory_bytes) / (1 << 30))
                         : "",
                     "; the workers have ", most, " between them")};
  }

  const Snapshot& snapshot_;
  Workers accepting_;
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
