// Random starting values that depend on a seed and a name only: the same on every machine, for
// every number of threads and ranks (rule G7 of the method cards).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>

#include "worker/train/parallel/shards.h"

namespace lemo::train {

// fp32 on the CPU, uniform in [-bound, bound).
at::Tensor UniformTensor(at::IntArrayRef shape, double bound, uint64_t seed, std::string_view name);

// fp32 on the CPU, normal with mean 0. `part`: of the tensor of this shape that part alone is made.
at::Tensor NormalTensor(at::IntArrayRef shape, double deviation, uint64_t seed,
                        std::string_view name, const Shard& part = {});

}  // namespace lemo::train
