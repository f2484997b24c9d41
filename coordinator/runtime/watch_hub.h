// Tells watchers that a job has new events, and keeps the newest few so that most reads need no
// store.
//
// A watcher holds a cursor, no queue of its own: a slow one costs nothing but its place.
// Thread-safe.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/store/store.h"
#include "lemo/v1/job.pb.h"

namespace lemo::coordinator {

class Watcher {
 public:
  virtual ~Watcher() = default;
  // There may be new events, or it is time for a sign of life. From the hub's thread; may call
  // Read.
  virtual void Wake(bool heartbeat) = 0;
};

class WatchHub {
 public:
  explicit WatchHub(Store* store, std::chrono::milliseconds heartbeat = std::chrono::seconds(5));
  ~WatchHub();

  // Events that are stored, and the job as it is after them. Does not block.
  void Publish(const lemo::v1::Job& job, const std::vector<lemo::v1::JobEvent>& events);

  void Subscribe(const std::string& job, std::weak_ptr<Watcher> watcher);
  void Unsubscribe(const std::string& job, const Watcher* watcher);
  // How many watch now.
  size_t Watchers();

  struct Page {
    std::vector<std::shared_ptr<const lemo::v1::JobEvent>> events;
    // The job has ended, and these are its last events.
    bool complete = false;
  };
  // Some events after `after_sequence`, in order; none when there is none yet. NOT_FOUND;
  // OUT_OF_RANGE when they have expired.
  absl::StatusOr<Page> Read(const std::string& job, int64_t after_sequence);

 private:
  struct Topic {
    std::deque<std::shared_ptr<const lemo::v1::JobEvent>> recent;
    std::map<const Watcher*, std::weak_ptr<Watcher>> watchers;
    bool ended = false;
  };
  void Dispatch();

  Store* const store_;
  const std::chrono::milliseconds heartbeat_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, Topic> topics_;
  std::set<std::string> dirty_;  // topics whose watchers are to be woken
  bool stopping_ = false;
  std::thread dispatcher_;
};

}  // namespace lemo::coordinator
