// Parts of tensors that the ranks of a tensor group have between them, and the whole tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "worker/train/parallel/communicator.h"

namespace lemo::train {

// The part of a tensor that this rank of a tensor group has.
struct Shard {
  int64_t dim = -1;  // along which the tensor is cut; -1: every rank has all of it
  int64_t first = 0;
  int64_t full = 0;  // size of the whole tensor along `dim`
  int64_t size = 0;  // of the part
  // Neighbouring ranks that have this very part: those whose query heads share a key head.
  int64_t copies = 1;

  bool cut() const { return dim >= 0; }
};

// The shard's part of a whole tensor, a view; `whole` itself where nothing is cut.
at::Tensor NarrowToShard(const at::Tensor& whole, const Shard& shard);

// The shape of the whole tensor of which a part has the shape `part`.
std::vector<int64_t> WholeShape(std::vector<int64_t> part, const Shard& shard);

// The whole tensor, contiguous on the CPU, on every rank. `part` is on the group's device, of one
// type everywhere. All ranks of the group call.
at::Tensor GatherWhole(const at::Tensor& part, const Shard& shard, Communicator& tensor);

}  // namespace lemo::train
