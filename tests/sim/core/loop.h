// Chance and time of the simulated world: all of it comes from one seed.
#pragma once

#include <cstdint>
#include <functional>
#include <queue>
#include <random>
#include <utility>
#include <vector>

namespace lemo::coordinator::sim {

using Ms = int64_t;  // milliseconds since the world began

class Chance {
 public:
  explicit Chance(uint64_t seed) : engine_(seed) {}

  // Uniform in [low, high]. Not std::uniform_int_distribution: its values differ between libraries.
  int64_t Between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(engine_() % static_cast<uint64_t>(high - low + 1));
  }
  // True in `per_mille` of a thousand cases.
  bool Happens(int per_mille) { return Between(0, 999) < per_mille; }

 private:
  std::mt19937_64 engine_;
};

// Things to do, by their time; those of one instant in the order in which they were planned.
class Loop {
 public:
  Ms now() const { return now_; }
  void After(Ms delay, std::function<void()> what) { At(now_ + delay, std::move(what)); }
  void At(Ms when, std::function<void()> what) {
    queue_.push({when < now_ ? now_ : when, ++planned_, std::move(what)});
  }
  bool RunNext() {
    if (queue_.empty()) return false;
    Item item = std::move(const_cast<Item&>(queue_.top()));
    queue_.pop();
    now_ = item.when;
    item.what();
    return true;
  }

 private:
  struct Item {
    Ms when;
    int64_t order;
    std::function<void()> what;
    bool operator<(const Item& other) const {
      return when != other.when ? when > other.when : order > other.order;
    }
  };
  std::priority_queue<Item> queue_;
  Ms now_ = 0;
  int64_t planned_ = 0;
};

}  // namespace lemo::coordinator::sim
