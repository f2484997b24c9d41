#include "worker/train/governor/governor.h"

#include <algorithm>

namespace lemo::train {

int64_t Governor::FirstFit(int64_t from, int64_t room,
                           const std::function<int64_t(int64_t rung)>& need) const {
  // One by one: bytes do not fall with every rung, since a layer that keeps less has more
  // temporaries when it is computed again.
  int64_t rung = from;
  while (rung < ladder_.size() && need(rung) > room) ++rung;
  return rung;
}

int64_t Governor::Propose(int64_t fitting, int64_t budget) {
  const bool back = fitting < rung_;
  const bool at_once =
      budget > budget_ || (back && ladder_.keep_of(fitting) < ladder_.keep_of(rung_));
  if (!back || at_once) {
    calm_ = 0;
    return fitting;
  }
  calm_rung_ = calm_ == 0 ? fitting : std::max(calm_rung_, fitting);
  if (++calm_ < kCalmSteps) return rung_;
  calm_ = 0;
  return calm_rung_;
}

}  // namespace lemo::train
