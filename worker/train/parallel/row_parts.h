// Rows that a tensor group has between its ranks.
//
// Either every rank has all of them, and what each makes of them is added up on all; or the ranks
// share them (parallel.sequence): each has its part, the parts lie one after another in the order
// of the ranks, what all compute with is gathered from them, and a sum is scattered to them. Code
// in these terms is the same for both, and for a rank alone, for which none of it does anything.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "worker/train/parallel/communicator.h"

namespace lemo::train {

// A sum over the ranks that is under way.
struct RowSum {
  at::Tensor rows;  // of this rank; to be read after the wait
  Pending pending;

  const at::Tensor& Wait() {
    pending.Wait();
    return rows;
  }
};

struct RowTile;

// Immutable; the group outlives it. Tensors are [rows, ...]. All ranks of the group call the same
// functions in the same order.
class RowParts {
 public:
  // Every rank of `group` has all `rows`. `group` null: this one alone.
  static RowParts Everywhere(Communicator* group, int64_t rows);
  // Rank r has counts[r].
  static RowParts Shared(Communicator* group, const std::vector<int64_t>& counts);
  // In parts as equal as can be: the first ranks have one row more. With one row more in all, one
  // rank has one more and no rank has less.
  static RowParts Even(Communicator* group, int64_t rows);

  bool shared() const { return shared_; }
  int64_t rows() const { return starts_.back(); }  // of all ranks
  int64_t first() const { return starts_[part_]; }
  int64_t count() const { return starts_[part_ + 1] - starts_[part_]; }  // of this rank
  // First row of every part and the number of rows; one part where each rank has all.
  const std::vector<int64_t>& starts() const { return starts_; }

  // The same ranks' rows without as many as `part` has of each, which has no more.
  RowParts Without(const RowParts& part) const;

  // This rank's of all rows, a view.
  at::Tensor Own(const at::Tensor& all) const { return all.narrow(0, first(), count()); }
  // All rows from every rank's own; `own` itself where it has all.
  at::Tensor Gather(const at::Tensor& own) const;
  // Adds up what each rank has made of all rows: into `made` where each rank has all.
  RowSum Sum(const at::Tensor& made) const;

  // The rows in tiles of about `most` (exactly, but for the last one, where each rank has all; else
  // less than a row for each rank more), which have their share of every rank's part, so that all
  // ranks give and take alike.
  std::vector<RowTile> Tiles(int64_t most) const;
  // All rows as one tile.
  RowTile All() const;

 private:
  RowParts(Communicator* group, bool shared, std::vector<int64_t> starts);
  RowTile TileOf(std::vector<int64_t> begins, const std::vector<int64_t>& ends,
                 int64_t first) const;
  // Elements of every part of a tensor like this.
  std::vector<int64_t> Elements(const at::Tensor& tensor) const;

  Communicator* group_;
  bool shared_;
  std::vector<int64_t> starts_;
  size_t part_;  // this rank's
};

// Some of a set of rows: a slice of every part.
struct RowTile {
  RowParts parts;               // of the tile's rows
  int64_t first = 0;            // rows in the tiles before this one
  int64_t own_first = 0;        // this rank's first row, among its rows of the set
  std::vector<int64_t> begins;  // of every slice, among the rows of the set

  // The tile's of one value a row of the set; a view where each rank has all.
  at::Tensor Of(const at::Tensor& set) const;
  // Writes one value a row of the tile to their places.
  void Put(const at::Tensor& values, const at::Tensor& set) const;
};

}  // namespace lemo::train
