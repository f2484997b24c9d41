// Checkpoints that are whole or absent.
//
// Layout: `<dir>/step-00000010/` holds the safetensors files and `state.json` of the caller and,
// written last, `manifest.json` with the size and SHA-256 of every other file. A checkpoint is made
// in `<dir>/.step-00000010.tmp`, every file synced, then renamed, and the parent synced. A
// directory without a manifest, or one whose files do not match it, does not count. A checkpoint of
// the same step is replaced (atomic_directory.h), never overwritten in place.
//
// Several processes that see one directory can each write a part, all at the same time: whole
// tensors in files of their own (`optimizer-00002-of-00004.safetensors`), then a note of what it
// wrote. The first one waits for the notes and makes the manifest of them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/safetensors.h"
#include "worker/train/state/atomic_directory.h"

namespace lemo::train {

struct CheckpointContents {
  int64_t step = 0;
  // File stem ("trainables", "optimizer") -> tensors. Views must live until Save returns.
  std::map<std::string, std::map<std::string, TensorView>> tensors;
  // Everything that is not a tensor, as JSON text.
  std::string state_json;
  // Evaluation loss at this step, for keep_best.
  std::optional<double> eval_loss;
  // Which of how many parts this is. The first has what is not a tensor.
  int part = 0;
  int parts = 1;
};

// A checkpoint read back; views live as long as the object.
struct LoadedCheckpoint {
  int64_t step = 0;
  std::filesystem::path path;
  std::map<std::string, SafetensorsFile> files;  // by name, less the suffix
  std::string state_json;

  // The tensor of that name among the files of that stem, whichever part has it; null for none.
  const TensorView* Find(const std::string& stem, const std::string& name) const;
};

struct RetentionOptions {
  int64_t keep_last = 2;   // at least 1
  bool keep_best = false;  // besides, the one of lowest eval_loss
};

// One directory of checkpoints. Not thread-safe; one process begins and finishes at a time.
class CheckpointStore {
 public:
  CheckpointStore(std::filesystem::path dir, RetentionOptions retention);

  // Makes an empty directory for the checkpoint of a step, after removing leftovers of torn writes.
  absl::StatusOr<AtomicDirectory> Begin(int64_t step);

  // Writes the first part into what Begin has made, waits for the others and puts the checkpoint
  // into place; then removes those that retention no longer wants. On an error (FailedPrecondition:
  // disk full) the former checkpoints are untouched and this one is gone. Returns the path.
  //
  // `give_up` is asked while others write; true ends the wait with Aborted.
  //
  // Retention counts whole checkpoints only and never removes the one just written; directories
  // that do not count are left for a person to look at.
  absl::StatusOr<std::filesystem::path> Finish(AtomicDirectory directory,
                                               const CheckpointContents& contents,
                                               const std::function<bool()>& give_up);

  // Both, for a checkpoint of one part.
  absl::StatusOr<std::filesystem::path> Save(const CheckpointContents& contents);

  // Any other part, into the directory that the first part's process has made
  // (Begin). Its error reaches that process too, if anything can still be written.
  absl::Status WritePart(const CheckpointContents& contents) const;

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
