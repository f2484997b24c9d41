#include "worker/train/tokens/row_space.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "worker/train/model/rope.h"

namespace lemo::train {
namespace {

at::Tensor Integers(std::span<const int32_t> values, at::ScalarType type, at::Device device) {
  return at::tensor(at::ArrayRef<int32_t>(values.data(), values.size()), at::kInt).to(device, type);
}

RopeTables MakeRopeTables(const std::vector<int32_t>& positions,
                          const std::vector<int32_t>& document_starts, const DecoderConfig& config,
                          at::ScalarType type, at::Device device) {
  if (config.positions != DecoderConfig::Positions::kRope) return {};
  const auto table_type = type == at::kDouble ? at::kDouble : at::kFloat;
  RopeTables tables;
  tables.cos = at::empty({std::ssize(positions), config.head_dim / 2}, table_type);
  tables.sin = at::empty_like(tables.cos);
  if (table_type == at::kDouble) {
    FillRopeTables(config.rope, config.head_dim, positions, document_starts,
                   tables.cos.mutable_data_ptr<double>(), tables.sin.mutable_data_ptr<double>());
  } else {
    FillRopeTables(config.rope, config.head_dim, positions, document_starts,
                   tables.cos.mutable_data_ptr<float>(), tables.sin.mutable_data_ptr<float>());
  }
  return {tables.cos.to(device), tables.sin.to(device)};
}

// What random draws know each row by: its place in the effective batch, or in the micro-batch.
at::Tensor RowIds(const MicroBatch& batch, at::Device device) {
  std::vector<int32_t> ids(batch.rows());
  std::iota(ids.begin(), ids.end(), 0);
  for (size_t d = 0; d < batch.document_places.size(); ++d) {
    const int32_t first = batch.document_starts[d];
    for (int32_t i = first; i < batch.document_starts[d + 1]; ++i) {
      ids[i] = static_cast<int32_t>(batch.document_places[d]) + i - first;
    }
  }
  return Integers(ids, at::kInt, device);
}

// Documents are runs of blocks.
Segments SegmentsOf(const BlockLayout& blocks, at::Device device) {
  Segments segments;
  std::vector<int32_t> starts;
  for (const int32_t block : blocks.documents) {
    starts.push_back(blocks.starts[block]);
    segments.starts.push_back(starts.back());
  }
  for (size_t i = 0; i + 1 < starts.size(); ++i) {
    segments.longest = std::max<int64_t>(segments.longest, starts[i + 1] - starts[i]);
  }
  segments.cumulative = Integers(starts, at::kInt, device);
  return segments;
}

}  // namespace

std::shared_ptr<const RowSpace> RowSpace::Make(const MicroBatch& batch, const DecoderConfig& config,
                                               at::ScalarType type, at::Device device,
                                               int64_t block_rows) {
  auto space = std::make_shared<RowSpace>();
  space->blocks_ = MakeBlocks(batch.document_starts, block_rows);
  space->positions_ = Integers(batch.positions, at::kLong, device);
  auto all = std::make_shared<RowSet>();
  all->count = batch.rows();
  all->row_ids = RowIds(batch, device);
  all->segments = SegmentsOf(space->blocks_, device);
  space->all_ = std::move(all);
  space->make_rope_ = [positions = batch.positions, starts = batch.document_starts, config, type,
                       device] { return MakeRopeTables(positions, starts, config, type, device); };
  return space;
}

const std::shared_ptr<const RowSet>& RowSpace::all() const {
  if (make_rope_) {
    auto all = std::make_shared<RowSet>(*all_);
    all->rope = std::exchange(make_rope_, nullptr)();
    all_ = std::move(all);
  }
  return all_;
}

at::Tensor RowSpace::Indices(const BlockMask& kept) const {
  return Integers(RowsOf(blocks_, kept), at::kLong, row_ids().device());
}

RowSet RowSpace::RowsWith(const RopeTables& rope, const BlockMask& kept) const {
  RowSet rows;
  rows.indices = Indices(kept);
  rows.count = rows.indices->size(0);
  rows.row_ids = all_->row_ids.index_select(0, *rows.indices);
  if (rope.cos.defined()) {
    rows.rope = {rope.cos.index_select(0, *rows.indices), rope.sin.index_select(0, *rows.indices)};
  }
  rows.segments = SegmentsOf(KeepBlocks(blocks_, kept), row_ids().device());
  return rows;
}

std::shared_ptr<const RowSet> RowSpace::Rows(const BlockMask& kept) const {
  return std::make_shared<const RowSet>(RowsWith(all()->rope, kept));
}

std::vector<QueryRun> RowSpace::Runs(const BlockMask& kept) const {
  std::vector<QueryRun> runs;
  int64_t query = 0;
  for (size_t d = 0; d + 1 < blocks_.documents.size(); ++d) {
    const int64_t document = blocks_.starts[blocks_.documents[d]];
    bool goes_on = false;
    for (int32_t n = blocks_.documents[d]; n < blocks_.documents[d + 1]; ++n) {
      if (kept[n] && !goes_on) {
        runs.push_back(
            {.query = query, .count = 0, .key = blocks_.starts[n], .document = document});
      }
      goes_on = kept[n] != 0;
      if (!goes_on) continue;
      runs.back().count += blocks_.rows_of(n);
      query += blocks_.rows_of(n);
    }
  }
  return runs;
}

std::shared_ptr<const RowSpace> RowSpace::Shrunk(const BlockMask& kept) const {
  auto space = std::make_shared<RowSpace>();
  space->blocks_ = KeepBlocks(blocks_, kept);
  // Tables that nobody has asked for yet are not kept for the larger space.
  auto all = std::make_shared<RowSet>(RowsWith(make_rope_ ? make_rope_() : all_->rope, kept));
  space->positions_ = positions_.index_select(0, *all->indices);
  all->indices.reset();
  space->all_ = std::move(all);
  return space;
}

}  // namespace lemo::train
