#include "worker/agent/lease.h"

#include <algorithm>

namespace lemo::agent {

void Lease::Grant(Instant asked, BootClock::duration length) {
  length_ = length;
  renewed_ = asked;
  sent_.clear();
}

void Lease::Sent(int64_t number, Instant now) {
  if (!sent_.empty() && number <= sent_.back().first) return;
  sent_.emplace_back(number, now);
  if (sent_.size() > kKept) sent_.pop_front();
}

void Lease::Renewed(int64_t number) {
  while (!sent_.empty() && sent_.front().first <= number) {
    if (sent_.front().first == number) renewed_ = std::max(renewed_, sent_.front().second);
    sent_.pop_front();
  }
}

}  // namespace lemo::agent
