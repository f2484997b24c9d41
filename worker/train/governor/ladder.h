// The ways in which a governed run can be computed, from what its spec says down to the smallest.
//
// Rungs are in the order in which they are to be tried: everything that storage can do comes before
// a smaller micro-batch, and that before fewer kept rows, which alone changes what is computed. So
// the first rung that fits is the one to take, and the way back is the same rule once there is room
// again: no state says how a run got where it is.
//
//   keep 1 --> micro-batches of 2048 rows --> storage: attn_out x8, input x1 attn_out x7, ...
//                               1024 rows --> the same again
//                               ...
//   keep 0.75 --> ...
//
// Within storage, layers step down one at a time, always the step that loses the fewest seconds for
// a byte saved (planner/offers/layer_mix.h); where the device has memory of its own, layers then
// send what little they still keep to the host, one at a time.
//
// Pure: numbers in, numbers out. The same options give the same ladder on every rank.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/offers/layer_mix.h"
#include "planner/offers/offers.h"

namespace lemo::train {

// How a batch is computed.
struct Rung {
  std::vector<planner::LayerStorage> storage;  // one a layer
  int64_t micro_rows = 0;  // of a micro-batch, unless one document has more; 0: as they come
  double keep_most = 1;    // share of the blocks that sparse layers keep at most
};

struct LadderOptions {
  std::vector<planner::LayerStorage> storage;  // one a layer, as the spec says
  // What each layer keeps and what that costs, by planner::Stored: [layer][4]. Only proportions
  // count, so a typical micro-batch does.
  std::vector<std::vector<planner::StorageChoice>> choices;
  bool own_memory = false;  // of the device: offload gains something
  int64_t rows_max = 0;     // of the largest micro-batch
  double keep = 1;          // the largest share of a sparse layer
  double min_keep = 1;      // below `keep` where less may be kept
};

class Ladder {
 public:
  explicit Ladder(const LadderOptions& options);

  // Rungs are 0 to size() - 1.
  int64_t size() const { return keeps() * micros() * storages(); }
  Rung At(int64_t rung) const;

  // The parts of a rung. Rungs of equal parts need equal bytes, so that callers look once.
  int64_t keep_of(int64_t rung) const { return rung / storages() / micros(); }
  int64_t micro_of(int64_t rung) const { return rung / storages() % micros(); }
  int64_t storage_of(int64_t rung) const { return rung % storages(); }

  int64_t keeps() const { return static_cast<int64_t>(keeps_.size()); }
  int64_t micros() const { return static_cast<int64_t>(micro_rows_.size()); }
  int64_t storages() const { return static_cast<int64_t>(storage_.size()); }
  double keep_most(int64_t keep) const { return keeps_[keep]; }
  int64_t micro_rows(int64_t micro) const { return micro_rows_[micro]; }
  const std::vector<planner::LayerStorage>& storage(int64_t i) const { return storage_[i]; }

 private:
  std::vector<double> keeps_;
  std::vector<int64_t> micro_rows_;
  std::vector<std::vector<planner::LayerStorage>> storage_;
};

// What differs between two rungs, a sentence's worth each, for people.
struct Change {
  std::string action;  // `storage`, `offload`, `micro_batch`, `keep`
  std::string layers;  // `0-3,7`; empty where it is not about layers
  std::string from, to;
};
std::vector<Change> ChangesOf(const Rung& from, const Rung& to);

}  // namespace lemo::train
