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
#include "worker/train/parallel/gang.h"
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
  double keep_least = 0;     // to which a shadow raised the shares of kept blocks
  std::string report;        // RunReport::SaveState
  std::string fingerprint;   // of the run that wrote it
};

// Copies trainables and moments of `engine`, whole whatever they are divided into, and `state` into
// the contents of one part of a checkpoint, as near to an equal share of the bytes as whole tensors
// make it. `tensors` owns what the views look at. All ranks call; one that writes nothing (`part`
// -1) gets no tensors.
CheckpointContents MakeCheckpoint(Engine& engine, const RunState& state, int part, int parts,
                                  std::vector<at::Tensor>* tensors);

// Bytes of that copy, on a host.
int64_t CheckpointBytes(Engine& engine, int part, int parts);

// Puts a checkpoint back, whatever shape of gang wrote it. InvalidArgument when its tensors are not
// those of this engine, or it belongs to another run; the engine is then unchanged. All ranks call;
// the lead's `checkpoint` counts (others may give null: it may lie on the lead's machine alone).
absl::StatusOr<RunState> RestoreCheckpoint(const LoadedCheckpoint* checkpoint,
                                           const std::string& fingerprint, Engine& engine,
                                           Gang& gang);

}  // namespace lemo::train
