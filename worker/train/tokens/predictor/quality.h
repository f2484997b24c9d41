// How well predicted scores rank blocks (lemo-spec sections 5.6 and 17.21).
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "worker/train/tokens/blocks.h"

namespace lemo::train {

inline constexpr std::array<double, 7> kRecallShares = {0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8};

// Means over documents.
struct HeadQuality {
  // Share of the truly best blocks that are among the best predicted ones, with ceil(share *
  // blocks) of either; one entry for each of kRecallShares. With equal counts this is precision
  // too.
  std::vector<double> recall;
  // Of the blocks predicted to be at least average, the share that truly is (the precision of
  // threshold mode with the thresholds that algorithm 1 begins with).
  double precision = 0;
  double spearman = 0;  // rank correlation
  double loss = 0;      // what training minimises

  // At `share`, one of kRecallShares.
  double RecallAt(double share) const;
};

// Collects documents. Documents of fewer than four blocks, which are never dropped from, are left
// out.
class QualityMeter {
 public:
  // One entry a block, in the same units.
  void Add(std::span<const float> predicted, std::span<const float> actual,
           const BlockLayout& blocks);
  void AddLoss(double loss);
  // NaN where nothing was added.
  HeadQuality Mean() const;
  int64_t documents() const { return documents_; }

 private:
  std::vector<double> recall_ = std::vector<double>(kRecallShares.size());
  double precision_ = 0, spearman_ = 0, loss_ = 0;
  int64_t documents_ = 0, losses_ = 0;
};

// |best by a, best by b| / count, for the `count` best entries of either, ties to the lower index.
double Overlap(std::span<const float> a, std::span<const float> b, int64_t count);

}  // namespace lemo::train
