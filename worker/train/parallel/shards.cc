#include "worker/train/parallel/shards.h"

#include <ATen/ATen.h>

#include <utility>
#include <vector>

namespace lemo::train {

at::Tensor NarrowToShard(const at::Tensor& whole, const Shard& shard) {
  return shard.cut() ? whole.narrow(shard.dim, shard.first, shard.size) : whole;
}

std::vector<int64_t> WholeShape(std::vector<int64_t> part, const Shard& shard) {
  if (shard.cut()) part[shard.dim] = shard.full;
  return part;
}

at::Tensor GatherWhole(const at::Tensor& part, const Shard& shard, Communicator& tensor) {
  const at::NoGradGuard no_grad;
  const at::Tensor own = part.detach().contiguous();
  if (!shard.cut() || tensor.size() == 1) return own.to(at::kCPU);
  // Where each rank's part begins and how long it is.
  const at::TensorOptions integers = own.options().dtype(at::kLong);
  at::Tensor places = at::empty({tensor.size(), 2}, integers);
  const at::Tensor place_of_this =
      at::tensor({shard.first, shard.size}, at::kLong).to(own.device());
  tensor.AllGather(place_of_this, places, std::vector<int64_t>(tensor.size(), 2)).Wait();
  places = places.cpu();
  const auto place = places.accessor<int64_t, 2>();
  std::vector<int64_t> shape = own.sizes().vec(), counts;
  shape[shard.dim] = 1;
  const int64_t slice = c10::multiply_integers(shape);
  for (int rank = 0; rank < tensor.size(); ++rank) counts.push_back(place[rank][1] * slice);
  at::Tensor parts = at::empty({c10::sum_integers(counts)}, own.options());
  tensor.AllGather(own.view({-1}), parts, counts).Wait();
  parts = parts.cpu();

  const at::Tensor whole = at::empty(WholeShape(shape, shard), parts.options());
  int64_t begin = 0;
  for (int rank = 0; rank < tensor.size(); ++rank) {
    shape[shard.dim] = place[rank][1];
    // Parts that several ranks have are equal.
    whole.narrow(shard.dim, place[rank][0], place[rank][1])
        .copy_(parts.narrow(0, begin, counts[rank]).view(shape));
    begin += counts[rank];
  }
  return whole;
}

}  // namespace lemo::train
