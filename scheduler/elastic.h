// Room that jobs can make for others: which contracts are cut while their jobs run, and which are
// given back.
//
// What makes this right: a job that may be cut has said what it can go on with, and keeps to a cut
// from one step to the next; so the room is there soon, or a step tells that it is not. Until then
// the job counts with what it had. Cutting a job slows it down, and waiting for its end would take
// far longer; nobody is cut below what he allows.
//
// Pure, as scheduler.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "scheduler/occupancy.h"
#include "scheduler/scheduler.h"

namespace lemo::scheduler {

// A job that runs by a contract that may be cut. Bytes are of each of its ranks, which are cut
// alike, the base included.
struct Elastic {
  Occupant occupant;        // memory_bytes: what it may have now, and counts with
  int64_t asked_bytes = 0;  // to come within, and not yet known to keep to; 0: nothing is under way
  int64_t least_bytes = 0;  // it can go on with
  int64_t most_bytes = 0;   // of its contract
};

struct Allotment {
  std::string job;
  int64_t memory_bytes = 0;  // what each of its ranks may have
};

// What must be cut for a job that waits for busy devices: on those where it takes least in all,
// over all ranks of those that are cut.
struct Cuts {
  std::vector<Allotment> jobs;    // to be asked now
  std::vector<std::string> from;  // all whose room it waits for, asked before or now; empty: there
                                  // are no devices where enough could be cut
};

// `workers` with what their jobs have of them. A gang that waits gets its devices on one worker if
// that is possible, else on those that span. None for a job without a contract, which wants devices
// for itself.
Cuts PlanCuts(const std::vector<Worker>& workers, const std::vector<Elastic>& elastic,
              const Request& request);

// What is given back when nobody waits: each in turn, as much as all its devices have left. Those
// that are being cut come later.
std::vector<Allotment> PlanRaises(std::vector<Worker> workers, const std::vector<Elastic>& elastic);

}  // namespace lemo::scheduler
