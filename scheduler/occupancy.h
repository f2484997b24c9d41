// What runs, as the scheduler sees it, and when a job that came now would start.
//
// Pure, as scheduler.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "scheduler/scheduler.h"

namespace lemo::scheduler {

// A job that has devices.
struct Occupant {
  std::string job;
  std::vector<Part> parts;
  bool shares = false;                 // as in Request
  int64_t memory_bytes = 0;            // of a rank, its base included
  std::optional<double> seconds_left;  // until it leaves them; absent when nobody can say
  Base base = {};                      // as in Request
};

// Whether a rank of so many bytes leaves room on the device for ranks of others.
bool Shares(const Device& device, bool shares, int64_t memory_bytes);
// What a rank of so many bytes would add to what the device has. For one that shares it.
int64_t AddedBytes(const Device& device, int64_t memory_bytes, const Base& base);
// Adds a rank to what the device has.
void Occupy(int64_t memory_bytes, const Base& base, bool shares, Device* device);

// Marks the devices that the occupant has of this worker, if any.
void Occupy(const Occupant& occupant, Worker* worker);

// A job that waits, and how long it will run.
struct Expected {
  Request request;
  std::optional<double> run_seconds;
};

// All that decides when a job would start.
struct Outlook {
  std::vector<Worker> workers;  // as if idle
  std::vector<Worker> returning;
  std::vector<Occupant> occupants;
  std::vector<Expected> queue;  // in order
};

struct Start {
  std::optional<double> seconds;  // from now; absent when nobody can say
  std::string text;  // what it waits for until then, or why nobody can say; empty for now
};

// Plays the scheduler forward, from one job's expected end to the next, with `request` last in the
// queue. As good as what the others are expected to take: no failure, no job that comes later and
// no drain is foreseen.
Start ForecastStart(const Scheduler& scheduler, const Outlook& outlook, const Request& request);

}  // namespace lemo::scheduler
