// The state of a run between two steps: everything that the next losses depend on, and what the
// report must remember.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/train/data/batch.h"
#include "worker/train/loop/engine.h"
#include "worker/train/state/checkpoint.h"

namespace lemo::train {

// There is no generator among it: random draws are functions of (seed, step, place).
struct RunState {
  int64_t step = 0;  // finished
  DataCursor cursor;
  int64_t tokens = 0;
  int64_t labelled_tokens = 0;
  double train_seconds = 0;  // in steps
  double train_loss = 0;     // of the last step
  double eval_before = 0;    // NaN when there is no evaluation
  double best_eval = 0;      // NaN before the first
  std::string report;        // RunReport::SaveState
  std::string fingerprint;   // of the run that wrote it
};

// Copies the trainables and moments of `engine` and `state` into a checkpoint's contents. `tensors`
// owns what the views look at.
CheckpointContents MakeCheckpoint(Engine& engine, const RunState& state,
                                  std::vector<at::Tensor>* tensors);

// Puts a checkpoint back. InvalidArgument when its tensors are not those of this engine, or it
// belongs to another run; the engine is then unchanged.
absl::StatusOr<RunState> RestoreCheckpoint(const LoadedCheckpoint& checkpoint,
                                           const std::string& fingerprint, Engine& engine);

}  // namespace lemo::train
