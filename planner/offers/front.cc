#include "planner/offers/front.h"

#include <algorithm>
#include <numeric>

namespace lemo::planner {
namespace {

// In quality.
bool NoWorse(const Price& a, const Price& b) {
  return a.kept >= 1 || (a.kept >= b.kept && a.chosen == b.chosen);
}

}  // namespace

bool Dominates(const Price& a, const Price& b) {
  const bool no_worse = a.bytes <= b.bytes && a.seconds <= b.seconds && NoWorse(a, b);
  return no_worse && (a.bytes < b.bytes || a.seconds < b.seconds || a.kept > b.kept);
}

// In the order of bytes only what came before can dominate, so two axes are left: of what was
// taken, the least seconds for every quality.
std::vector<size_t> FrontOf(std::span<const Price> prices) {
  std::vector<size_t> order(prices.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&prices](size_t a, size_t b) {
    const Price &x = prices[a], &y = prices[b];
    if (x.bytes != y.bytes) return x.bytes < y.bytes;
    if (x.seconds != y.seconds) return x.seconds < y.seconds;
    return x.kept > y.kept;
  });
  std::vector<size_t> front;
  std::vector<Price> best;  // few, as are the choices of tokens
  for (const size_t i : order) {
    const Price& price = prices[i];
    const bool beaten = std::any_of(best.begin(), best.end(), [&price](const Price& b) {
      return b.seconds <= price.seconds && NoWorse(b, price);
    });
    if (beaten) continue;
    front.push_back(i);
    std::erase_if(
        best, [&price](const Price& b) { return price.seconds <= b.seconds && NoWorse(price, b); });
    best.push_back(price);
  }
  return front;
}

}  // namespace lemo::planner
