// Where a pass of the tape is.
#pragma once

#include <cstdint>

namespace lemo::train {

// The two parts of a decoder layer, in forward order, each with the norm in front of it.
enum class SubBlock { kAttention, kMlp };

// Is told where a pass is: for parameters that are fetched for a sub-block, and gradients that are
// complete behind it. Forward enters and leaves one after the other. Backward enters the MLP and
// attention of a layer, since it may have to compute attention again for the MLP's input, and
// leaves them in this order.
class SubBlockObserver {
 public:
  virtual ~SubBlockObserver() = default;
  virtual void Enter(int64_t layer, SubBlock part, bool backward) = 0;
  virtual void Leave(int64_t layer, SubBlock part, bool backward) = 0;
  virtual void LeaveEmbedding() = 0;  // of backward
};

}  // namespace lemo::train
