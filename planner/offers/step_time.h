// Seconds of a step, by the work of its layers and the rates of the device.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "planner/offers/offers.h"
#include "planner/offers/workload.h"

namespace lemo::planner {

// How one model is divided.
struct RankSplit {
  int64_t tensor_ranks = 1;
  int64_t data_ranks = 1;
  Sharding sharding = Sharding::kNone;
};

// Prices one workload on one split; what layers store and how many micro-batches a step has may
// differ between calls. All references outlive it.
class StepClock {
 public:
  // `choice` is what the workload was made with.
  StepClock(const OfferRequest& request, const Workload& workload, const RankSplit& split,
            const TokenChoice* choice = nullptr);

  // What storing a layer this way adds to a step, beyond keeping everything on the device.
  double StorageSeconds(int64_t layer, const LayerStorage& storage) const;

  // `micro_batches`: of one rank, in a step.
  StepSeconds Step(std::span<const LayerStorage> storage, int64_t micro_batches) const;

  // Of the run beside its steps, in passes of so many windows: one evaluation, one shadow, and the
  // table of blocks, which every rank makes for all of the data that the steps will see.
  double Evaluation(int64_t micro_batch_sequences) const;
  double Shadow(int64_t micro_batch_sequences) const;
  double Scoring(int64_t micro_batch_sequences) const;

  // The step by operator, those that take time or whose rate is not known; for a person to read, as
  // it counts everything again.
  std::vector<OperatorSeconds> Operators(std::span<const LayerStorage> storage,
                                         int64_t micro_batches) const;

  // Sequences of a step that the rank with most of them has.
  int64_t sequences_of_rank() const { return sequences_; }

 private:
  struct Layer {
    double kept[4] = {};    // seconds of copies, by Stored
    double replay[4] = {};  // and of what is computed again
    double copies[4] = {};  // of offloaded boundaries, there and back
    double sums[2] = {};    // bytes of sums over the tensor group: always, and where replayed
  };
  // Bytes that a rank sends, and sums that it waits for.
  struct Sums {
    double bytes = 0, tensor_bytes = 0;
    double count = 0, tensor_count = 0;
  };

  double Price(const std::vector<OperatorWork>& work) const;
  LayerOperators OfLayer(const LayerRows& rows) const;
  std::vector<OperatorWork> QueriesAndKeys() const;  // of all rows
  // Of a predictor that is trained: whether the last layer is no further passed than they are.
  bool ScoresLastAlone() const;
  std::vector<OperatorWork> Head() const;
  // Layers forward alone, over all of so many rows of a rank; `loss`: to the end.
  double DensePass(double rows, double pairs, int64_t micro_batch_sequences, bool loss) const;
  // With the loss, of this share of what is evaluated.
  double DenseLoss(double share, int64_t micro_batch_sequences) const;
  std::vector<OperatorWork> Selection() const;
  std::vector<OperatorWork> Learning() const;  // of a predictor that is trained
  // Of one that learns on the way, in the mean step.
  std::vector<OperatorWork> Lessons(int64_t micro_batches) const;
  std::vector<OperatorWork> Update(int64_t micro_batches) const;
  bool SumsAgain(int64_t layer, const LayerStorage& storage) const;
  Sums SumsOf(std::span<const LayerStorage> storage, int64_t micro_batches) const;
  double Seconds(const Sums& sums) const;

  const OfferRequest& request_;
  const Workload& workload_;
  const TokenChoice* choice_;
  RankSplit split_;
  SharedRates rates_;  // of one of its ranks
  double ratio_ = 1;
  Tuning tuning_;
  PassShape pass_;
  int64_t sequences_ = 0;
  double of_data_ = 0;  // share of the workload that a step of the fullest rank has
  double forward_ = 0, backward_ = 0, head_ = 0, selection_ = 0;
  std::vector<Layer> layers_;
};

}  // namespace lemo::planner
