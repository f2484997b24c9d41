// Writes checkpoints, or a rank's part of them, beside the steps: training is held for the copy of
// its state alone.
#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <future>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/train/state/checkpoint.h"

namespace lemo::train {

// One at a time. Used by one thread; nobody else may use the store meanwhile.
class BackgroundSave {
 public:
  struct Done {
    int64_t step = 0;
    std::string reason;
    double seconds = 0;                          // of writing
    absl::StatusOr<std::filesystem::path> path;  // empty for a part other than the first
  };

  // `broken` says, to another thread, that some rank has failed: then other ranks' parts are waited
  // for a few seconds more.
  BackgroundSave(CheckpointStore* store, std::function<bool()> broken)
      : store_(store), broken_(std::move(broken)) {}
  // Hurries, and waits.
  ~BackgroundSave();

  // After Take has given what was begun before. `tensors` own what the contents look at;
  // `directory` is for the first part, and what CheckpointStore::Begin made.
  void Begin(std::optional<AtomicDirectory> directory, CheckpointContents contents,
             std::vector<at::Tensor> tensors, std::string reason);
  // For a run that fails: as if some rank had failed.
  void Hurry() { hurried_ = true; }
  // What was begun, when it is over; `wait` waits for that. Nothing when nothing was.
  std::optional<Done> Take(bool wait);

 private:
  CheckpointStore* store_;
  std::function<bool()> broken_;
  std::atomic<bool> hurried_{false};
  std::future<Done> writing_;
};

}  // namespace lemo::train
