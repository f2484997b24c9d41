// What comes and goes within one layer, outside the arena: the allocations of Tape::ForwardLayer
// and Tape::BackwardLayer (worker/train/tape/tape.cc) in their order.
//
// Letters in names: N rows of the stream, A rows of attention, M rows of the MLP, H hidden, Q width
// of all query heads, K of all key heads, I intermediate, r rank of an adapter.
#pragma once

#include <cstdint>

#include "planner/memory/memory.h"

namespace lemo::planner {

// What a layer's temporaries depend on.
struct LayerScene {
  ModelShape shape;  // of this rank's part
  MemoryTuning tuning;
  LayerMemory layer;
  int64_t element_bytes = 4;
  int64_t tile_rows = 1024;
  int64_t threads = 1;
  bool packs_keys = false;
  bool several_documents = false;
  bool shares_tensors = false;  // with a tensor group
  // Gradients are wanted of the layer's input: something below trains.
  bool into_x = true;
  // The first projections come with tables of rotation of their own, which turn nothing.
  bool unturned = false;
};

// Highest bytes of temporaries in a layer's forward pass, above what is alive between layers.
// `keep`: boundaries go into the arena; in an evaluation nothing is kept.
int64_t ForwardLayerBytes(const LayerScene& scene, bool keep);

int64_t BackwardLayerBytes(const LayerScene& scene);

// Of the queries and keys of the layer's rows, and of the scores of their blocks of `block` rows.
int64_t ScoreLayerBytes(const LayerScene& scene, bool rotated, int64_t block);

// One tensor of statistics an element of a softmax or of a norm, whatever the compute type.
inline constexpr int64_t kStatisticBytes = 4;

}  // namespace lemo::planner
