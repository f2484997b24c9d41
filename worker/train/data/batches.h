// Documents to batches: for training an endless stream in a shuffled order that can be taken up
// anywhere, for evaluation one pass in file order.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/train/data/batch.h"
#include "worker/train/data/dataset.h"
#include "worker/train/data/positions.h"
#include "worker/train/data/sequence_order.h"

namespace lemo::train {

// A micro-batch takes whole sequences, in order, as long as its rows stay within
// `micro_batch_tokens`; a sequence longer than that is one by itself. Which sequences a batch has
// does not depend on it.
struct BatchOptions {
  uint64_t seed = 0;
  int64_t max_length = 0;
  bool packing = true;
  // Of the effective batch; exactly one is above 0. With `batch_tokens`, sequences are added until
  // the next would exceed it, at least one.
  int64_t batch_sequences = 0;
  int64_t batch_tokens = 0;
  int64_t micro_batch_tokens = 0;  // 0: max_length
  // Of each effective batch only the sequences of one share are made into micro-batches. Which
  // batches there are depends on neither number.
  int share = 0;
  int shares = 1;
  double attention_length = 0;  // see SequenceCost
  // Drawn from (seed, epoch, document), so that a document has the same positions whatever it lies
  // beside, on whichever share, and from whichever cursor on.
  PositionSkip skip;
};

// The data set must outlive the stream. Not thread-safe; movable.
//
// A batch never has sequences of two epochs: the last one of an epoch may be smaller than the
// others, so that every document counts exactly once an epoch.
class BatchStream {
 public:
  // InvalidArgument when an option is out of range or a document is longer than max_length.
  static absl::StatusOr<BatchStream> Create(const Dataset* data, const BatchOptions& options);

  Batch Next();

  // Before the batch that Next() would give. `sequence` is below SequencesPerEpoch().
  DataCursor cursor() const { return {order_.epoch(), order_.sequence()}; }
  // Goes on as a stream would that stood there. InvalidArgument for a place that this data does not
  // have (a sequence equal to SequencesPerEpoch() is the next epoch's start).
  absl::Status Seek(const DataCursor& cursor);

  int64_t SequencesPerEpoch() const { return order_.sequences_per_epoch(); }
  // Batches of an epoch. With batch_tokens it differs from epoch to epoch, as the order does, and
  // takes a look at every document's length.
  int64_t StepsInEpoch(int64_t epoch) const;
  // Batches until `epochs` passes (not below 0) are over; the last one may be begun in the midst of
  // an epoch: it is the one with which at least that share of its sequences was seen.
  int64_t StepsForEpochs(double epochs) const;

  // No micro-batch ever has more rows.
  int64_t MaxMicroBatchRows() const;

  struct BatchAhead {
    int64_t index = 0;  // 0: the one that Next() would give
    Batch batch;
  };
  // Of the next `batches`, at least one: the first that has the largest micro-batch of any share,
  // and behind it, where that one has only shorter documents, the first that has the longest. A row
  // counts `weight` of its batch. Looks at the length of every document of theirs.
  std::vector<BatchAhead> LargestAhead(int64_t batches,
                                       const std::function<double(int64_t index)>& weight) const;

 private:
  struct Sequence {
    std::vector<int64_t> documents;
    int64_t tokens = 0;
    int64_t place = 0;  // first row in the effective batch
    int share = 0;
    int64_t micro_batch = 0;  // of its share
  };

  BatchStream(const Dataset* data, const BatchOptions& options);
  // Passes over the sequences of one batch, calling `take` at each.
  template <typename Take>
  void ForBatch(SequenceOrder* order, Take take) const;
  // The same, with the micro-batches that all shares make of it.
  std::vector<Sequence> Divide(SequenceOrder* order) const;

  const Dataset* data_;
  BatchOptions options_;
  SequenceOrder order_;
};

// Micro-batches in file order, each document a sequence of its own. The data set must outlive it.
class EvalBatches {
 public:
  // `max_documents` 0: all. `micro_batch_tokens` must be above 0.
  EvalBatches(const Dataset* data, int64_t micro_batch_tokens, int64_t max_documents);

  // Absent after the last.
  std::optional<MicroBatch> Next();

  int64_t MaxMicroBatchRows() const;

 private:
  const Dataset* data_;
  int64_t micro_batch_tokens_;
  int64_t end_;
  int64_t next_ = 0;
};

}  // namespace lemo::train
