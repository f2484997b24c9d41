// The order of training: which documents share a sequence, and when each sequence comes.
//
// A permutation of all documents, drawn from the seed once, is cut into windows of kWindow
// documents. With packing, each window's documents are put into as few sequences as
// best-fit-decreasing finds; without, each document is a sequence. An epoch takes the windows in an
// order drawn from (seed, epoch), and the sequences of each in an order drawn from (seed, epoch,
// window).
//
// So memory does not grow with the data (one window, and a number for each), which sequences there
// are is the same in every epoch, and nothing depends on batch sizes or on the number of ranks. The
// price is that the sequences of one window come near each other; since a window is a random
// sample, that is not felt. (Packing anew in every epoch was rejected: the number of steps of a run
// could not be told beforehand, and since attention stays inside a document, neighbours in a
// sequence do not matter.)
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "worker/train/data/dataset.h"

namespace lemo::train {

// Puts items into bins of `capacity`, whole: the largest first, each into the fullest bin that has
// room. Answers the items (indexes into `lengths`) of each bin. No length may be above `capacity`.
std::vector<std::vector<int32_t>> PackBestFit(std::span<const int64_t> lengths, int64_t capacity);

struct OrderOptions {
  uint64_t seed = 0;
  int64_t max_length = 0;  // of a sequence; no document may be longer
  bool packing = true;
};

// Stands before one sequence of one epoch. The data set must outlive it and must not be empty.
// Cheap to copy. Not thread-safe.
class SequenceOrder {
 public:
  static constexpr int64_t kWindow = 4096;

  // Looks at the length of every document.
  SequenceOrder(const Dataset* data, const OrderOptions& options);

  int64_t sequences_per_epoch() const { return layout_->sequences; }
  // Tokens of the longest sequence.
  int64_t longest_sequence() const { return layout_->longest_sequence; }

  int64_t epoch() const { return epoch_; }
  // In [0, sequences_per_epoch()).
  int64_t sequence() const { return sequence_; }

  // `sequence` must be in [0, sequences_per_epoch()), `epoch` at least 0.
  void Seek(int64_t epoch, int64_t sequence);

  // The documents of the sequence at hand, and how many tokens they have together.
  const std::vector<int64_t>& documents() const { return window_[index_]; }
  int64_t tokens() const;

  // On to the next sequence; after an epoch's last to the next epoch's first.
  void Advance();

 private:
  struct Layout {
    std::vector<int32_t> window_sequences;
    int64_t sequences = 0;
    int64_t longest_sequence = 0;
  };

  // The sequences of a window in no particular order.
  std::vector<std::vector<int64_t>> MakeSequences(int64_t window) const;
  void LoadWindow();
  void StartEpoch();

  const Dataset* data_;
  OrderOptions options_;
  std::shared_ptr<const Layout> layout_;
  int64_t epoch_ = 0;
  int64_t sequence_ = 0;
  std::vector<int32_t> window_order_;         // of this epoch
  size_t slot_ = 0;                           // in window_order_
  std::vector<std::vector<int64_t>> window_;  // its sequences, in this epoch's order
  size_t index_ = 0;                          // in window_
};

}  // namespace lemo::train
