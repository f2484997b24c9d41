// Which ranks of a gang write its checkpoints.
#pragma once

#include <filesystem>

#include "absl/status/statusor.h"
#include "worker/train/parallel/gang.h"

namespace lemo::train {

struct CheckpointParts {
  int own = 0;  // that this rank writes; -1 for none
  int count = 1;

  bool writes() const { return own >= 0; }
};

// Every rank that sees the lead's `output` writes a part; the lead writes the first. Without a file
// system that all share those of the lead's machine do. All ranks call.
absl::StatusOr<CheckpointParts> DivideCheckpoints(Gang& gang, const std::filesystem::path& output);

}  // namespace lemo::train
