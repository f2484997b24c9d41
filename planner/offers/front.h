// The candidates that no other one beats in everything.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lemo::planner {

// What candidates are compared by. Less is better, but for `kept`.
struct Price {
  int64_t bytes = 0;
  double seconds = 0;
  double kept = 0;
  // Whose rows were chosen, and not cut off by a shorter window. What either costs in quality at
  // equal `kept` is not known, so that neither is worse.
  bool chosen = false;
};

// No worse in all three, better in one, and of one kind where both leave rows out.
bool Dominates(const Price& a, const Price& b);

// Indexes of the prices that none dominates, by rising bytes; of equal ones the first alone.
std::vector<size_t> FrontOf(std::span<const Price> prices);

}  // namespace lemo::planner
