#include "scheduler/occupancy.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace lemo::scheduler {
namespace {

// More ends than that are not played through, nor so many waiting jobs looked at: what lies behind
// them is guesswork, and a long queue would take minutes.
constexpr int kRounds = 256;
constexpr size_t kLooks = size_t{1} << 16;

Occupant MakeOccupant(const Placement& placement, const Expected& expected, double now) {
  Occupant occupant{
      placement.job, placement.parts,      expected.request.shares, expected.request.memory_bytes,
      std::nullopt,  expected.request.base};
  if (expected.run_seconds) occupant.seconds_left = now + *expected.run_seconds;
  return occupant;
}

}  // namespace

int64_t Device::UsedBytes() const {
  int64_t bytes = shared_bytes;
  for (const Base& base : bases) bytes += base.bytes;
  return bytes;
}

bool Shares(const Device& device, bool shares, int64_t memory_bytes) {
  return shares && memory_bytes > 0 && device.memory_bytes > 0;
}

namespace {

// The part of the base that counts apart on this device: nothing where each has its own, nor where
// it would be all that a job has.
int64_t ApartBytes(const Device& device, int64_t memory_bytes, const Base& base) {
  const bool apart = device.shares_bases && !base.name.empty() && base.bytes < memory_bytes;
  return apart ? std::max<int64_t>(base.bytes, 0) : 0;
}

auto FindBase(const Device& device, const Base& base) {
  return std::find_if(device.bases.begin(), device.bases.end(),
                      [&](const Base& other) { return other.name == base.name; });
}

}  // namespace

int64_t AddedBytes(const Device& device, int64_t memory_bytes, const Base& base) {
  const int64_t apart = ApartBytes(device, memory_bytes, base);
  if (apart == 0) return memory_bytes;
  const auto there = FindBase(device, base);
  // Of one name and two sizes, which nobody should say, the larger one counts.
  const int64_t had = there == device.bases.end() ? 0 : there->bytes;
  return memory_bytes - apart + std::max<int64_t>(0, apart - had);
}

void Occupy(int64_t memory_bytes, const Base& base, bool shares, Device* device) {
  if (!Shares(*device, shares, memory_bytes)) {
    device->busy = true;
    return;
  }
  const int64_t apart = ApartBytes(*device, memory_bytes, base);
  device->shared_bytes += memory_bytes - apart;
  if (apart == 0) return;
  const auto there = FindBase(*device, base);
  if (there == device->bases.end()) {
    device->bases.push_back({base.name, apart});
  } else {
    Base& had = device->bases[static_cast<size_t>(there - device->bases.begin())];
    had.bytes = std::max(had.bytes, apart);
  }
}

void Occupy(const Occupant& occupant, Worker* worker) {
  for (const Part& part : occupant.parts) {
    if (part.worker != worker->id) continue;
    for (Device& device : worker->devices) {
      if (std::find(part.devices.begin(), part.devices.end(), device.index) == part.devices.end()) {
        continue;
      }
      Occupy(occupant.memory_bytes, occupant.base, occupant.shares, &device);
    }
  }
}

Start ForecastStart(const Scheduler& scheduler, const Outlook& outlook, const Request& request) {
  std::vector<Occupant> occupants = outlook.occupants;
  std::vector<Expected> queue = outlook.queue;
  queue.push_back({request, std::nullopt});
  std::map<std::string, size_t> places;  // in the outlook's workers
  for (size_t w = 0; w < outlook.workers.size(); ++w) places[outlook.workers[w].id] = w;
  double now = 0;
  std::string waits_for;
  size_t looks = 0;
  for (int round = 0; round < kRounds && looks < kLooks; ++round) {
    looks += queue.size();
    Snapshot snapshot{outlook.workers, {}, outlook.returning};
    for (const Occupant& occupant : occupants) {
      for (const Part& part : occupant.parts) {
        const auto place = places.find(part.worker);
        if (place != places.end()) Occupy(occupant, &snapshot.workers[place->second]);
      }
    }
    for (const Expected& expected : queue) snapshot.queue.push_back(expected.request);
    const Decisions decisions = scheduler.Decide(snapshot);
    for (const Placement& placement : decisions.placements) {
      if (placement.job == request.job) return {now, waits_for};
      const auto placed = std::find_if(queue.begin(), queue.end(), [&](const Expected& expected) {
        return expected.request.job == placement.job;
      });
      occupants.push_back(MakeOccupant(placement, *placed, now));
      queue.erase(placed);
    }
    if (waits_for.empty() && !decisions.waiting.empty()) waits_for = decisions.waiting.back().text;
    const auto next = std::min_element(
        occupants.begin(), occupants.end(), [](const Occupant& a, const Occupant& b) {
          return a.seconds_left && (!b.seconds_left || *a.seconds_left < *b.seconds_left);
        });
    if (next == occupants.end()) return {std::nullopt, waits_for};
    if (!next->seconds_left) {
      return {std::nullopt,
              absl::StrCat(waits_for, "; nobody can say when ", next->job, " will have ended")};
    }
    now = std::max(now, *next->seconds_left);
    occupants.erase(next);
  }
  return {std::nullopt, absl::StrCat(waits_for, "; too much runs and waits before it")};
}

}  // namespace lemo::scheduler
