// Which waiting jobs start where, and why the others wait.
//
// Pure: a snapshot in, decisions out; no thread, clock or file. The coordinator and the simulator
// drive the same code. Thread-safe: a Scheduler has no state.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lemo::scheduler {

enum class DeviceKind { kCpu, kCuda };

struct Device {
  int index = 0;
  DeviceKind kind = DeviceKind::kCpu;
  int64_t memory_bytes = 0;
  bool busy = false;
};

struct Worker {
  std::string id;
  bool accepts_jobs = true;  // connected, neither cordoned nor draining
  std::vector<Device> devices;
  std::vector<std::string> model_paths;  // that it has without fetching
};

// One waiting job. A gang: all of its ranks are placed at once, or none.
struct Request {
  std::string job;
  int ranks = 1;                   // at least 1
  std::optional<DeviceKind> kind;  // nullopt: any, but all ranks on the same kind
  int64_t memory_bytes = 0;        // of a rank on its device; 0: not known, fits everywhere
  std::string model_path;          // workers that have it come first; empty: no matter
};

struct Snapshot {
  std::vector<Worker> workers;
  std::vector<Request> queue;  // in the order of their rights, first come first
};

struct Placement {
  std::string job;
  std::string worker;
  std::vector<int> devices;  // indices on that worker, one a rank
};

enum class WaitReason {
  kNoWorker,         // none is connected
  kWorkersCordoned,  // those that would fit take no new jobs
  kNoSuchDevice,     // of the wanted kind, or so many on one worker
  kMemoryTooSmall,
  kDevicesBusy,
  kBehindOthers,  // would fit, but an earlier job waits for those devices
};

struct Waiting {
  std::string job;
  WaitReason reason = WaitReason::kNoWorker;
  std::string text;  // one sentence with the figures: "needs 2 CUDA devices on one worker; the
                     // largest has 1"
};

// Every job of the queue is in exactly one of the two, in queue order.
struct Decisions {
  std::vector<Placement> placements;
  std::vector<Waiting> waiting;
};

class Scheduler {
 public:
  virtual ~Scheduler() = default;
  virtual Decisions Decide(const Snapshot& snapshot) const = 0;
};

// First come first served. A job that could run if nothing else did, and waits for busy devices,
// holds back later jobs that want devices which it could use; a job that no worker could ever run
// holds back nobody.
class FifoScheduler : public Scheduler {
 public:
  Decisions Decide(const Snapshot& snapshot) const override;
};

}  // namespace lemo::scheduler
