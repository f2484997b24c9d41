#include "worker/train/parallel/row_parts.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <utility>

namespace lemo::train {
namespace {

std::vector<int64_t> StartsOf(const std::vector<int64_t>& counts) {
  std::vector<int64_t> starts = {0};
  for (const int64_t count : counts) starts.push_back(starts.back() + count);
  return starts;
}

std::vector<int64_t> SizesOf(const at::Tensor& like, int64_t rows) {
  std::vector<int64_t> sizes = like.sizes().vec();
  sizes[0] = rows;
  return sizes;
}

}  // namespace

RowParts::RowParts(Communicator* group, bool shared, std::vector<int64_t> starts)
    : group_(group),
      shared_(shared),
      starts_(std::move(starts)),
      part_(shared ? static_cast<size_t>(group->rank()) : 0) {}

RowParts RowParts::Everywhere(Communicator* group, int64_t rows) {
  return RowParts(group, /*shared=*/false, {0, rows});
}

RowParts RowParts::Shared(Communicator* group, const std::vector<int64_t>& counts) {
  return RowParts(group, /*shared=*/true, StartsOf(counts));
}

RowParts RowParts::Even(Communicator* group, int64_t rows) {
  const int64_t ranks = group->size();
  std::vector<int64_t> counts;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    counts.push_back(rows / ranks + (rank < rows % ranks ? 1 : 0));
  }
  return Shared(group, counts);
}

RowParts RowParts::Without(const RowParts& part) const {
  std::vector<int64_t> starts;
  for (size_t i = 0; i < starts_.size(); ++i) starts.push_back(starts_[i] - part.starts_[i]);
  return RowParts(group_, shared_, std::move(starts));
}

std::vector<int64_t> RowParts::Elements(const at::Tensor& tensor) const {
  const int64_t width = c10::multiply_integers(tensor.sizes().slice(1));
  std::vector<int64_t> elements;
  for (size_t i = 0; i + 1 < starts_.size(); ++i) {
    elements.push_back((starts_[i + 1] - starts_[i]) * width);
  }
  return elements;
}

at::Tensor RowParts::Gather(const at::Tensor& own) const {
  if (!shared_) return own;
  const at::Tensor all = at::empty(SizesOf(own, rows()), own.options());
  group_->AllGather(own.contiguous(), all, Elements(own)).Wait();
  return all;
}

RowSum RowParts::Sum(const at::Tensor& made) const {
  if (group_ == nullptr) return {made, {}};
  const at::Tensor all = made.contiguous();
  if (!shared_) return {all, group_->AllReduce(all, ReduceOp::kSum)};
  const at::Tensor own = at::empty(SizesOf(all, count()), all.options());
  return {own, group_->ReduceScatter(all, own, Elements(all))};
}

RowTile RowParts::TileOf(std::vector<int64_t> begins, const std::vector<int64_t>& ends,
                         int64_t first) const {
  std::vector<int64_t> counts;
  for (size_t i = 0; i < begins.size(); ++i) counts.push_back(ends[i] - begins[i]);
  return {.parts = RowParts(group_, shared_, StartsOf(counts)),
          .first = first,
          .own_first = begins[part_] - starts_[part_],
          .begins = std::move(begins)};
}

std::vector<RowTile> RowParts::Tiles(int64_t most) const {
  const int64_t tiles = (rows() + most - 1) / most;
  // First row of tile `i` of the part, among all rows.
  const auto begin_of = [&](size_t part, int64_t i) {
    const int64_t count = starts_[part + 1] - starts_[part];
    return starts_[part] + (shared_ ? count * i / tiles : std::min(count, i * most));
  };
  std::vector<RowTile> result;
  int64_t first = 0;
  for (int64_t i = 0; i < tiles; ++i) {
    std::vector<int64_t> begins, ends;
    for (size_t part = 0; part + 1 < starts_.size(); ++part) {
      begins.push_back(begin_of(part, i));
      ends.push_back(begin_of(part, i + 1));
    }
    result.push_back(TileOf(std::move(begins), ends, first));
    first += result.back().parts.rows();
  }
  return result;
}

RowTile RowParts::All() const {
  return TileOf({starts_.begin(), starts_.end() - 1}, {starts_.begin() + 1, starts_.end()}, 0);
}

at::Tensor RowTile::Of(const at::Tensor& set) const {
  const std::vector<int64_t>& starts = parts.starts();
  if (!parts.shared()) return set.narrow(0, begins.front(), parts.rows());
  std::vector<at::Tensor> slices;
  for (size_t i = 0; i < begins.size(); ++i) {
    slices.push_back(set.narrow(0, begins[i], starts[i + 1] - starts[i]));
  }
  return at::cat(slices);
}

void RowTile::Put(const at::Tensor& values, const at::Tensor& set) const {
  const std::vector<int64_t>& starts = parts.starts();
  for (size_t i = 0; i < begins.size(); ++i) {
    const int64_t count = starts[i + 1] - starts[i];
    set.narrow(0, begins[i], count).copy_(values.narrow(0, starts[i], count));
  }
}

}  // namespace lemo::train
