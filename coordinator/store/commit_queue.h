// Group commit: changes of several threads become durable with one sync of the disk.
//
// One thread owns the writing connection. It takes all changes that wait, runs each inside a
// savepoint of one transaction (one that fails is undone and does not touch the others), commits
// once and wakes all callers. While it syncs, the next group gathers; so a busy store pays one sync
// for many changes, an idle one for each.
#pragma once

#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/store/sqlite.h"

namespace lemo::coordinator {

// Thread-safe.
class CommitQueue {
 public:
  // A change runs on the writer's thread. It may read what the changes before it wrote.
  using Change = absl::FunctionRef<absl::Status(SqlConnection&)>;

  explicit CommitQueue(std::unique_ptr<SqlConnection> writer);
  // No Commit may be under way.
  ~CommitQueue();

  // Waits until `change` is durable. Otherwise nothing of it has happened: what the change itself
  // answered, or why the transaction could not be written.
  absl::Status Commit(Change change);

 private:
  struct Waiting;

  void Loop();
  void CommitGroup(const std::vector<Waiting*>& group);
  absl::Status RunGroup(const std::vector<Waiting*>& group);

  const std::unique_ptr<SqlConnection> writer_;
  absl::Mutex mutex_;
  std::deque<Waiting*> queue_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace lemo::coordinator
