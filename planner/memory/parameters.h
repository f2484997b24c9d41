// The tensors that one rank has of a model, and those that train.
#pragma once

#include <cstdint>

#include "planner/memory/memory.h"

namespace lemo::planner {

// The part that one rank of a tensor group has: its heads, its share of the MLP's width and of the
// words.
ModelShape PartOf(const ModelShape& shape, int64_t ranks);

// Elements.
struct ParameterCount {
  int64_t all = 0;
  int64_t largest = 0;             // of one tensor
  int64_t attention = 0, mlp = 0;  // of one layer's sub-blocks, each with its norm
  int64_t ends = 0;                // of the largest of embedding and head with what belongs to them
  int64_t layer() const { return attention + mlp; }
};

ParameterCount CountWeights(const ModelShape& shape);
ParameterCount CountTrained(const ModelShape& shape, const MemoryTuning& tuning);

}  // namespace lemo::planner
