// The rows of a residual stream: where documents and blocks lie, and which row of the micro-batch
// each one is. The tape takes its row lists, and the size of its streams, from here.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "worker/train/data/batch.h"
#include "worker/train/model/attention.h"
#include "worker/train/model/decoder.h"
#include "worker/train/tokens/blocks.h"

namespace lemo::train {

// The rows that a sub-block computes, in the order of the stream.
struct RowSet {
  std::optional<at::Tensor> indices;  // int64 [count], strictly ascending; nullopt for all rows
  int64_t count = 0;
  at::Tensor row_ids;  // int32 [count]: what random draws know the rows by (MicroBatch)
  RopeTables rope;     // [count, D / 2], by original position; undefined without rope
  Segments segments;   // documents, in kept rows
};

// Immutable to its users, who are one thread. All tensors are on the model's device.
class RowSpace {
 public:
  // All rows of a micro-batch.
  static std::shared_ptr<const RowSpace> Make(const MicroBatch& batch, const DecoderConfig& config,
                                              at::ScalarType type, at::Device device,
                                              int64_t block_rows);

  int64_t rows() const { return blocks_.rows(); }
  const BlockLayout& blocks() const { return blocks_; }
  // int32 [rows]: as in RowSet.
  const at::Tensor& row_ids() const { return all_->row_ids; }
  // int64 [rows]: positions in their documents.
  const at::Tensor& positions() const { return positions_; }

  const std::shared_ptr<const RowSet>& all() const;
  // The rows of the kept blocks. Built anew at every call: what a pass keeps is the mask alone.
  std::shared_ptr<const RowSet> Rows(const BlockMask& kept) const;

  // Where the rows of the kept blocks ask when all rows of the space are seen.
  std::vector<QueryRun> Runs(const BlockMask& kept) const;

  // int64, ascending: rows of the kept blocks.
  at::Tensor Indices(const BlockMask& kept) const;
  // A stream of those rows alone.
  std::shared_ptr<const RowSpace> Shrunk(const BlockMask& kept) const;

 private:
  RowSet RowsWith(const RopeTables& rope, const BlockMask& kept) const;

  BlockLayout blocks_;
  at::Tensor positions_;
  // Null once all_ has its tables. They are made at first use, since a micro-batch whose stream is
  // shrunk before the first layer never needs those of all its rows.
  mutable std::function<RopeTables()> make_rope_;
  mutable std::shared_ptr<const RowSet> all_;
};

}  // namespace lemo::train
