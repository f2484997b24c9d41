// Checkpoints that are whole or absent.
//
// Layout: `<dir>/step-00000010/` holds the safetensors files and `state.json` of the caller and,
// written last, `manifest.json` with the size and SHA-256 of every other file. A checkpoint is made
// in `<dir>/.step-00000010.tmp`, every file synced, then renamed, and the parent synced. A
// directory without a manifest, or one whose files do not match it, does not count. A checkpoint of
// the same step is replaced (atomic_directory.h), never overwritten in place.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/safetensors.h"

namespace lemo::train {

struct CheckpointContents {
  int64_t step = 0;
  // File stem ("trainables", "optimizer") -> tensors. Views must live until Save returns.
  std::map<std::string, std::map<std::string, TensorView>> tensors;
  // Everything that is not a tensor, as JSON text.
  std::string state_json;
  // Evaluation loss at this step, for keep_best.
  std::optional<double> eval_loss;
};

// A checkpoint read back; views live as long as the object.
struct LoadedCheckpoint {
  int64_t step = 0;
  std::filesystem::path path;
  std::map<std::string, SafetensorsFile> files;
  std::string state_json;
};

struct RetentionOptions {
  int64_t keep_last = 2;   // at least 1
  bool keep_best = false;  // besides, the one of lowest eval_loss
};

// One directory of checkpoints. Not thread-safe; one process writes at a time.
class CheckpointStore {
 public:
  CheckpointStore(std::filesystem::path dir, RetentionOptions retention);

  // Writes one checkpoint, then removes those that retention no longer wants and leftovers of torn
  // writes. On an error (FailedPrecondition: disk full) the former checkpoints are untouched and
  // the partial one is gone. Returns the path.
  //
  // Retention counts whole checkpoints only and never removes the one just written; directories
  // that do not count are left for a person to look at.
  absl::StatusOr<std::filesystem::path> Save(const CheckpointContents& contents);

  // The newest whole checkpoint, checksums verified; nullopt when there is none. `skipped` (may be
  // null) receives one line for each directory passed over, with the reason.
  absl::StatusOr<std::optional<LoadedCheckpoint>> LoadNewest(
      std::vector<std::string>* skipped) const;

  // One named checkpoint; InvalidArgument with the first file that does not match its manifest.
  // NotFound when there is no such directory.
  static absl::StatusOr<LoadedCheckpoint> Load(const std::filesystem::path& path);

  // Removes every checkpoint, for a run that starts anew in the directory of an earlier one:
  // otherwise a later resume would take up the earlier run's newer steps.
  absl::Status Clear();

 private:
  absl::Status RemoveLeftovers();
  void ApplyRetention(int64_t just_saved);

  std::filesystem::path dir_;
  RetentionOptions retention_;
};

}  // namespace lemo::train
