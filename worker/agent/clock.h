// The agent's clock for leases and waits.
#pragma once

#include <time.h>

#include <chrono>

namespace lemo::agent {

// Goes on while the machine sleeps, unlike CLOCK_MONOTONIC: a lease runs out at the coordinator
// while a laptop's lid is closed, and the agent must know on waking. Steps of the wall clock do not
// touch it.
struct BootClock {
  using duration = std::chrono::nanoseconds;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<BootClock>;
  static constexpr bool is_steady = true;

  static time_point now() noexcept {
    timespec now;
    ::clock_gettime(CLOCK_BOOTTIME, &now);
    return time_point(std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec));
  }
};

using Instant = BootClock::time_point;
constexpr Instant kNever = Instant::max();

// Seconds as a double, as messages carry them. At most about 30 years, so that sums do not
// overflow.
inline BootClock::duration FromSeconds(double seconds) {
  if (!(seconds > 0)) return BootClock::duration::zero();
  return std::chrono::duration_cast<BootClock::duration>(
      std::chrono::duration<double>(seconds < 1e9 ? seconds : 1e9));
}
inline double ToSeconds(BootClock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace lemo::agent
