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

// On the CPU, normal with mean 0: fp32, rounded to `type` as it is drawn, so that no copy of the
// whole is ever there. `part`: of the tensor of this shape that part alone is made.
at::Tensor NormalTensor(at::IntArrayRef shape, double deviation, uint64_t seed,
                        std::string_view name, const Shard& part = {},
                        at::ScalarType type = at::kFloat);

}  // namespace lemo::train
