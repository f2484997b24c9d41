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

// Frozen weights that the jobs of a device which share it and need the same ones have once.
struct Base {
  std::string name;  // the same for the same weights alone; empty: none
  int64_t bytes = 0;
};

struct Device {
  int index = 0;
  DeviceKind kind = DeviceKind::kCpu;
  int64_t memory_bytes = 0;   // 0: not known
  bool busy = false;          // a job has it for itself
  int64_t shared_bytes = 0;   // of jobs that share it, bases apart; 0: it has none
  bool shares_bases = false;  // else each job has its weights for itself
  std::vector<Base> bases{};  // of jobs that share it, each once
  std::string type = {};      // what it is, within its kind

  // All that those have.
  int64_t UsedBytes() const;
};

struct Worker {
  std::string id;
  bool accepts_jobs = true;  // connected, neither cordoned nor draining
  bool spans = false;        // others reach it: it may take a part of a gang beside them
  std::vector<Device> devices;
  std::vector<std::string> model_paths;  // that it has without fetching
};

// One waiting job. A gang: all of its ranks are placed at once, or none.
struct Request {
  std::string job;
  int ranks = 1;                   // at least 1
  int min_ranks = 0;               // with so many it runs while there are not as many; 0: `ranks`
  int multiple = 1;                // fewer ranks are a multiple of this; so are those of a node, if
                                   // that is possible
  std::optional<DeviceKind> kind;  // nullopt: any, but all ranks on the same kind
  int64_t memory_bytes = 0;        // of a rank on its device; 0: not known, fits everywhere
  bool shares = false;             // `memory_bytes` is a contract that its ranks are held to
  Base base = {};                  // within `memory_bytes`
  std::string model_path;          // workers that have it come first; empty: no matter
  std::string type = {};           // of the devices; empty: any, also several in one gang
};

struct Snapshot {
  std::vector<Worker> workers;
  std::vector<Request> queue;  // in the order of their rights, first come first
  // Not connected, but expected back in seconds: jobs do not shrink for want of these.
  std::vector<Worker> returning;
};

// A worker's part of a gang.
struct Part {
  std::string worker;
  std::vector<int> devices;  // indices on that worker, one a rank
};

struct Placement {
  std::string job;
  std::vector<Part> parts;  // at least one; the first is the lead's
};

enum class WaitReason {
  kNoWorker,         // none is connected
  kWorkersCordoned,  // those that would fit take no new jobs
  kNoSuchDevice,     // of the wanted kind, or so many
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

// Two jobs share a device when both have contracts and the device's memory is known and holds both,
// a base of both of them counted once; never otherwise. Idle devices come first: what a job was
// offered is the time of a device of its own. Then those that have the job's base.
//
// First come first served. A gang goes to one worker if one has the devices free, else to as few as
// possible of those that span. A job that could run if nothing else did, and waits for busy
// devices, holds back later jobs that want devices which it could use, shared ones too; a job that
// no worker could ever run holds back nobody.
class FifoScheduler : public Scheduler {
 public:
  Decisions Decide(const Snapshot& snapshot) const override;
};

}  // namespace lemo::scheduler
