// Bytes that are alive, and the most that ever were.
#pragma once

#include <algorithm>
#include <cstdint>

namespace lemo::planner {

class Meter {
 public:
  // `base`: bytes that are alive throughout.
  explicit Meter(int64_t base = 0) : live_(base), peak_(base) {}

  void Take(int64_t bytes) {
    live_ += bytes;
    peak_ = std::max(peak_, live_);
  }
  void Give(int64_t bytes) { live_ -= bytes; }
  // Taken and given at once.
  void Touch(int64_t bytes) { peak_ = std::max(peak_, live_ + bytes); }

  int64_t live() const { return live_; }
  int64_t peak() const { return peak_; }

 private:
  int64_t live_, peak_;
};

}  // namespace lemo::planner
