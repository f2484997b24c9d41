// Until when this agent may run ranks.
#pragma once

#include <cstdint>
#include <deque>
#include <utility>

#include "worker/agent/clock.h"

namespace lemo::agent {

// The coordinator counts a lease from when it answers; the agent counts from when it sent what was
// answered, which is earlier. So whatever the network does, the agent's lease is over first, and a
// job that the coordinator places anew does not run twice. Not thread-safe.
class Lease {
 public:
  // A Welcome came to a Hello that was sent at `asked`.
  void Grant(Instant asked, BootClock::duration length);
  // A heartbeat is about to be sent.
  void Sent(int64_t number, Instant now);
  // It was answered. Numbers that were never sent, or are older than one answered, change nothing.
  void Renewed(int64_t number);

  bool granted() const { return length_ > BootClock::duration::zero(); }
  BootClock::duration length() const { return length_; }
  // The sending of what was answered last.
  Instant renewed() const { return renewed_; }
  // When ranks are to be asked to end: two thirds of the lease without an answer. kNever before a
  // grant.
  Instant StopAt() const { return granted() ? renewed_ + length_ * 2 / 3 : kNever; }
  // When they are to be killed: early enough that they are gone at the end of the lease.
  Instant KillAt() const { return granted() ? renewed_ + length_ * 9 / 10 : kNever; }

 private:
  // Heartbeats that may still be answered; a coordinator that answers none must not make it grow.
  static constexpr size_t kKept = 64;

  BootClock::duration length_ = BootClock::duration::zero();
  Instant renewed_{};
  std::deque<std::pair<int64_t, Instant>> sent_;  // ascending
};

}  // namespace lemo::agent
