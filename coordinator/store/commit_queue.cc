#include "coordinator/store/commit_queue.h"

#include <utility>

#include "absl/synchronization/notification.h"
#include "common/status_macros.h"

namespace lemo::coordinator {
namespace {

// Bounds how long the first of a group waits for the last.
constexpr size_t kGroupMax = 512;

}  // namespace

// Lives on its caller's stack.
struct CommitQueue::Waiting {
  Change change;
  absl::Status status;
  absl::Notification done;
};

CommitQueue::CommitQueue(std::unique_ptr<SqlConnection> writer)
    : writer_(std::move(writer)), thread_([this] { Loop(); }) {}

CommitQueue::~CommitQueue() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

absl::Status CommitQueue::Commit(Change change) {
  Waiting waiting{change, absl::OkStatus(), {}};
  {
    absl::MutexLock lock(&mutex_);
    queue_.push_back(&waiting);
  }
  waiting.done.WaitForNotification();
  return waiting.status;
}

void CommitQueue::Loop() {
  for (;;) {
    std::vector<Waiting*> group;
    {
      absl::MutexLock lock(&mutex_);
      const auto ready = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
        return stopping_ || !queue_.empty();
      };
      mutex_.Await(absl::Condition(&ready));
      if (queue_.empty()) return;
      while (!queue_.empty() && group.size() < kGroupMax) {
        group.push_back(queue_.front());
        queue_.pop_front();
      }
    }
    CommitGroup(group);
  }
}

void CommitQueue::CommitGroup(const std::vector<Waiting*>& group) {
  const absl::Status written = RunGroup(group);
  if (!written.ok()) {
    // A transaction that SQLite could not undo either makes the next BEGIN fail, not succeed.
    if (writer_->InTransaction()) writer_->Run("ROLLBACK").IgnoreError();
    for (Waiting* waiting : group) {
      // A change that was refused for its own sake keeps its answer.
      if (waiting->status.ok()) waiting->status = written;
    }
  }
  // The callers' frames may be gone from here on.
  for (Waiting* waiting : group) waiting->done.Notify();
}

absl::Status CommitQueue::RunGroup(const std::vector<Waiting*>& group) {
  LEMO_RETURN_IF_ERROR(writer_->Run("BEGIN IMMEDIATE").status());
  bool any = false;
  for (Waiting* waiting : group) {
    LEMO_RETURN_IF_ERROR(writer_->Run("SAVEPOINT change").status());
    waiting->status = waiting->change(*writer_);
    // On a full disk or a failed read SQLite may have undone the whole transaction by itself.
    if (!writer_->InTransaction()) {
      return waiting->status.ok() ? writer_->Error("change", 0) : waiting->status;
    }
    if (!waiting->status.ok()) {
      LEMO_RETURN_IF_ERROR(writer_->Run("ROLLBACK TO change").status());
    }
    any = any || waiting->status.ok();
    LEMO_RETURN_IF_ERROR(writer_->Run("RELEASE change").status());
  }
  return writer_->Run(any ? "COMMIT" : "ROLLBACK").status();
}

}  // namespace lemo::coordinator
