// Checkpoints that do not die with this machine.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lemo/v1/job_service.grpc.pb.h"
#include "lemo/v1/worker_service.grpc.pb.h"
#include "worker/agent/uplink.h"
#include "worker/agent/waker.h"

namespace lemo::agent {

// Hands the newest checkpoint of a run over to the coordinator, beside the run: a thread uploads
// one at a time, and of those that come meanwhile only the newest follows. A checkpoint that cannot
// be handed over costs nothing but the work that another worker would have to do again. All calls
// belong to the agent's loop.
class CheckpointShare {
 public:
  // `out` is the run's output directory, `scratch` a directory on the same file system that is this
  // object's own. Checkpoints of more than `limit` bytes stay here. `stub` and `waker` outlive it.
  CheckpointShare(lemo::v1::AttemptId id, std::filesystem::path out, std::filesystem::path scratch,
                  int64_t limit, lemo::v1::WorkerService::Stub* stub, Waker* waker);
  // Ends the transfer.
  ~CheckpointShare();
  CheckpointShare(const CheckpointShare&) = delete;
  CheckpointShare& operator=(const CheckpointShare&) = delete;

  // The ranks have written `event`. Its files are linked at once, for the run removes old
  // checkpoints.
  void Offer(const lemo::v1::CheckpointEvent& event);
  // Takes note of a transfer that has ended and starts the next. What is new with the coordinator.
  std::optional<lemo::v1::JobCheckpoint> Advance();
  bool busy() const { return transfer_ != nullptr || next_.has_value(); }
  // Of what is under way, and all that would follow.
  void Cancel();

 private:
  struct Transfer {
    Canceller canceller;
    std::thread thread;
    std::atomic<bool> done{false};
    absl::StatusOr<lemo::v1::JobCheckpoint> result = absl::UnknownError("");
  };
  // A checkpoint that is linked below scratch_.
  struct Linked {
    int step = 0;
    std::filesystem::path directory;
  };

  void Start(Linked linked);

  const lemo::v1::AttemptId id_;
  const std::filesystem::path out_, scratch_;
  const int64_t limit_;
  lemo::v1::WorkerService::Stub* const stub_;
  Waker* const waker_;
  std::unique_ptr<Transfer> transfer_;
  std::optional<Linked> next_;
  bool cancelled_ = false;
};

// Brings `checkpoint` of `job` into the run's output directory `out`, unless one as new is there:
// all of it, or nothing. `fetched`, beside `out`, is used meanwhile. An error costs nothing but
// work; Cancelled when `canceller` says no. Blocks.
absl::Status FetchCheckpoint(const std::string& job, const lemo::v1::JobCheckpoint& checkpoint,
                             const std::filesystem::path& out, lemo::v1::JobService::Stub* stub,
                             Canceller* canceller);

}  // namespace lemo::agent
