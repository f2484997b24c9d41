// How much each layer leaves out, from what that was measured to do to the loss (lemo-spec section
// 9).
//
// Pure: the measuring is the caller's. Losses are in nats, shares are of a document's blocks. A
// kept block costs as many bytes in one layer as in any other, so that loss per byte is loss per
// share.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace lemo::train {

// By how much the loss is above that of all rows with one layer alone at a share.
struct LossRises {
  std::vector<double> shares;             // rising, each in (0, 1)
  std::vector<std::vector<double>> rise;  // [layers][shares]

  // Between the measured shares along straight lines, to 0 at a share of 1; below the least one as
  // there.
  double At(int64_t layer, double share) const;
};

// What was measured for a model and its predictor, in scope layer.
struct AllocatedShares {
  double mean = 0;           // share of the blocks that was asked for
  std::vector<double> keep;  // one a layer; empty where nothing was measured
  std::string mlp;           // rows of the MLP in sparse layers: `shared`, `off`
  int64_t sequences = 0;     // that losses were measured on
  double loss_gap = 0;       // with all of `keep` at once, above that of all rows, in nats
  LossRises rises;           // of layers alone; empty with thresholds
  // Of method `fd`: predicted scores that a layer's blocks must have. `keep` is then what they
  // kept.
  std::vector<double> threshold;
};

// The shares whose mean is `mean`, in (0, 1], and whose rises add up to little: from 1 everywhere,
// that layer is lowered by a little whose loss rises least by it, the lower one first. None is
// below the least measured share as long as `mean` is not.
std::vector<double> AllocateShares(const LossRises& rises, double mean);

// What a pass by thresholds gave.
struct ThresholdTrial {
  double loss = 0;           // mean
  std::vector<double> kept;  // share of the rows, by layer
  double MeanKept() const;
};

struct TunedThresholds {
  std::vector<double> values;  // one a layer
  double price = 0;            // lambda: nats that a share of 1 is worth
  ThresholdTrial trial;        // with them
};

// Absent: to be given up.
using TryThresholds =
    std::function<std::optional<ThresholdTrial>(const std::vector<double>& thresholds)>;

// Method `fd`: -loss - price * mean kept share is raised by finite differences, one layer after
// another, in three sweeps from `start`; a layer's threshold moves by `reach` of it at most each
// time. The price is looked for by halves so that the mean kept share comes near `mean`; which it
// need not reach, since nothing moves further than three times its reach. Absent where a trial was.
std::optional<TunedThresholds> TuneThresholds(const std::vector<double>& start,
                                              const std::vector<double>& reach, double mean,
                                              const TryThresholds& attempt);

}  // namespace lemo::train
