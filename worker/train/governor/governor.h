// Which rung of the ladder the next step takes.
//
// Assumptions that make the rule right: bytes are known before a step; an amendment costs nothing
// by itself, so a step may be computed in another way than the one before; a batch that needs much
// is often followed by others like it, and telling of a change at every step helps nobody.
//
// So a step takes the first rung that fits. Where that is an earlier one than the step before took,
// it is taken at once if the budget grew, or if rows were left out for the former one; else after
// kCalmSteps steps in a row that it would have done for.
//
// Pure; not thread-safe. Ranks that ask the same things in the same order get the same answers.
#pragma once

#include <cstdint>
#include <functional>

#include "worker/train/governor/ladder.h"

namespace lemo::train {

class Governor {
 public:
  static constexpr int kCalmSteps = 8;

  // The ladder outlives it. Begins on rung 0.
  explicit Governor(const Ladder& ladder) : ladder_(ladder) {}

  // Of the last step taken.
  int64_t rung() const { return rung_; }
  int64_t budget() const { return budget_; }

  // The first rung, from `from` on, for which `need` (bytes) is no more than `room`; the ladder's
  // size where there is none.
  int64_t FirstFit(int64_t from, int64_t room,
                   const std::function<int64_t(int64_t rung)>& need) const;

  // The rung to take, where `fitting` is the first that fits under this budget (bytes): no earlier
  // one. It need not be one that fits: the caller looks on from there.
  int64_t Propose(int64_t fitting, int64_t budget);

  // What the step takes, at last.
  void Take(int64_t rung, int64_t budget) {
    rung_ = rung;
    budget_ = budget;
  }

 private:
  const Ladder& ladder_;
  int64_t rung_ = 0;
  int64_t budget_ = 0;
  int calm_ = 0;           // steps in a row that an earlier rung would have done for
  int64_t calm_rung_ = 0;  // the one that would have done for all of them
};

}  // namespace lemo::train
