#include "worker/train/tokens/allocation.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace lemo::train {
namespace {

constexpr double kStep = 0.05;  // of a share, by which a layer is lowered at a time

constexpr int kSweeps = 3;
constexpr int kPrices = 8;
constexpr double kLeastPrice = 1e-3, kMostPrice = 1e2;

double Mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

}  // namespace

double LossRises::At(int64_t layer, double share) const {
  const std::vector<double>& of = rise[layer];
  if (share >= 1) return 0;
  if (share <= shares.front()) return of.front();
  const size_t above =
      std::upper_bound(shares.begin(), shares.end(), share) - shares.begin();  // at least 1
  const double low = shares[above - 1];
  const bool last = above == shares.size();
  const double high = last ? 1 : shares[above];
  return of[above - 1] + ((last ? 0 : of[above]) - of[above - 1]) * (share - low) / (high - low);
}

std::vector<double> AllocateShares(const LossRises& rises, double mean) {
  const size_t layers = rises.rise.size();
  const double least = rises.shares.front();
  if (mean <= least) return std::vector<double>(layers, mean);
  std::vector<double> keep(layers, 1.0);
  // What is still to be taken away, of all layers together.
  double left = (1 - mean) * static_cast<double>(layers);
  while (left > 1e-9) {
    std::optional<size_t> best;
    double best_rise = 0, best_step = 0;
    for (size_t l = 0; l < layers; ++l) {
      const double step = std::min({kStep, left, keep[l] - least});
      if (step < 1e-9) continue;
      const auto layer = static_cast<int64_t>(l);
      const double rise = (rises.At(layer, keep[l] - step) - rises.At(layer, keep[l])) / step;
      if (best && rise >= best_rise) continue;
      best = l;
      best_rise = rise;
      best_step = step;
    }
    if (!best) break;
    // Rounded, so that people read 0.6 in specs and cards.
    keep[*best] = std::round((keep[*best] - best_step) * 1e12) / 1e12;
    left -= best_step;
  }
  return keep;
}

double ThresholdTrial::MeanKept() const { return Mean(kept); }

std::optional<TunedThresholds> TuneThresholds(const std::vector<double>& start,
                                              const std::vector<double>& reach, double mean,
                                              const TryThresholds& attempt) {
  std::optional<TunedThresholds> best;
  double low = std::log(kLeastPrice), high = std::log(kMostPrice);
  for (int i = 0; i < kPrices; ++i) {
    TunedThresholds tuned{.values = start, .price = std::exp((low + high) / 2)};
    for (int sweep = 0; sweep < kSweeps; ++sweep) {
      for (size_t l = 0; l < start.size(); ++l) {
        std::vector<double> side = tuned.values;
        side[l] = tuned.values[l] + reach[l];
        const std::optional<ThresholdTrial> above = attempt(side);
        side[l] = tuned.values[l] - reach[l];
        const std::optional<ThresholdTrial> below = above ? attempt(side) : std::nullopt;
        if (!below) return std::nullopt;
        const double loss = above->loss - below->loss;
        const double share = tuned.price * (above->MeanKept() - below->MeanKept());
        // The objective's slope, in units of what pulls either way: the whole reach where one of
        // them has it all, nothing where they are in balance.
        const double pull = std::abs(loss) + std::abs(share);
        if (pull > 0) tuned.values[l] -= reach[l] * (loss + share) / pull;
      }
    }
    std::optional<ThresholdTrial> trial = attempt(tuned.values);
    if (!trial) return std::nullopt;
    tuned.trial = *std::move(trial);
    const double kept = tuned.trial.MeanKept();
    (kept > mean ? low : high) = std::log(tuned.price);
    if (!best || std::abs(kept - mean) < std::abs(best->trial.MeanKept() - mean)) {
      best = std::move(tuned);
    }
  }
  return best;
}

}  // namespace lemo::train
