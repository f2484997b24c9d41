// Removes what is no longer wanted: old events and logs, content that nothing names, uploads that
// nobody goes on with.
//
// Content is written before the row that names it, so it may be without a name for a while: what is
// younger than a day is left alone, unless it is known to have been dropped.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/artifacts/artifacts.h"
#include "coordinator/runtime/log_files.h"
#include "coordinator/store/store.h"

namespace lemo::coordinator {

struct JanitorOptions {
  // After a job's end. InfiniteDuration: for ever.
  absl::Duration keep_events = absl::Hours(30 * 24);
  absl::Duration keep_logs = absl::Hours(30 * 24);
  // Between two sweeps, and before the first one: agents dial in first.
  std::chrono::milliseconds interval = std::chrono::hours(1);
};

// Thread-safe.
class Janitor {
 public:
  // Everything outlives the janitor.
  Janitor(const JanitorOptions& options, Store* store, ArtifactStore* artifacts,
          ArtifactStore* checkpoints, LogFiles* logs);
  ~Janitor();

  // Runs `name`, which stores a row that names the artifact, while that cannot be removed. ABORTED,
  // without running it, when the artifact is not there.
  absl::Status Name(const std::string& sha256, const std::function<absl::Status()>& name);

  // Content that something named until now. It is removed soon, unless something else names it.
  // Do not block.
  void DropArtifacts(const std::vector<std::string>& sha256);
  void DropCheckpoints(const std::vector<std::string>& sha256);

  // While it is held no content is removed.
  std::unique_lock<std::mutex> HoldContent() { return std::unique_lock(removal_mutex_); }

  struct Swept {
    int64_t events = 0;
    int64_t logs = 0;  // of jobs
    int64_t contents = 0;
    int64_t uploads = 0;
  };
  // What the janitor's thread does now and then. An error leaves the rest for the next time.
  absl::StatusOr<Swept> Sweep(absl::Time now);

 private:
  struct Dropped {
    std::string sha256;
    bool checkpoint;
  };

  void Drop(const std::vector<std::string>& sha256, bool checkpoint);
  void Loop();
  void RemoveDropped(const std::vector<Dropped>& dropped);
  absl::Status SweepContents(bool checkpoints, absl::Time before, Swept* swept);

  const JanitorOptions options_;
  Store* const store_;
  ArtifactStore* const artifacts_;
  ArtifactStore* const checkpoints_;
  LogFiles* const logs_;

  std::mutex removal_mutex_;  // before name_mutex_
  std::mutex name_mutex_;     // from the look for a name to the removal, or from a look to a name

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Dropped> dropped_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace lemo::coordinator
