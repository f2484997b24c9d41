#include "coordinator/runtime/watch_hub.h"

#include <utility>

#include "common/status_macros.h"

namespace lemo::coordinator {
namespace {

constexpr size_t kRecent = 64;
constexpr int kPage = 64;

}  // namespace

WatchHub::WatchHub(Store* store, std::chrono::milliseconds heartbeat)
    : store_(store), heartbeat_(heartbeat), dispatcher_([this] { Dispatch(); }) {}

WatchHub::~WatchHub() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  dispatcher_.join();
}

void WatchHub::Publish(const lemo::v1::Job& job, const std::vector<lemo::v1::JobEvent>& events) {
  if (events.empty()) return;
  {
    const std::lock_guard lock(mutex_);
    Topic& topic = topics_[job.name()];
    for (const lemo::v1::JobEvent& event : events) {
      topic.recent.push_back(std::make_shared<const lemo::v1::JobEvent>(event));
    }
    while (topic.recent.size() > kRecent) topic.recent.pop_front();
    topic.ended = HasEnded(job.state());
    if (topic.watchers.empty()) {
      if (topic.ended) topics_.erase(job.name());
      return;
    }
    dirty_.insert(job.name());
  }
  changed_.notify_one();
}

void WatchHub::Subscribe(const std::string& job, std::weak_ptr<Watcher> watcher) {
  const std::lock_guard lock(mutex_);
  const Watcher* key = watcher.lock().get();
  topics_[job].watchers[key] = std::move(watcher);
}

void WatchHub::Unsubscribe(const std::string& job, const Watcher* watcher) {
  const std::lock_guard lock(mutex_);
  const auto found = topics_.find(job);
  if (found == topics_.end()) return;
  found->second.watchers.erase(watcher);
  // A job that ended, or of which nothing was published since this program began.
  if (found->second.watchers.empty() && (found->second.ended || found->second.recent.empty())) {
    topics_.erase(found);
  }
}

size_t WatchHub::Watchers() {
  const std::lock_guard lock(mutex_);
  size_t watchers = 0;
  for (const auto& [job, topic] : topics_) watchers += topic.watchers.size();
  return watchers;
}

void WatchHub::Dispatch() {
  auto next_heartbeat = std::chrono::steady_clock::now() + heartbeat_;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    changed_.wait_until(lock, next_heartbeat, [this] { return stopping_ || !dirty_.empty(); });
    const bool heartbeat = std::chrono::steady_clock::now() >= next_heartbeat;
    if (heartbeat) next_heartbeat = std::chrono::steady_clock::now() + heartbeat_;
    std::vector<std::weak_ptr<Watcher>> woken, beating;
    for (const std::string& job : dirty_) {
      const auto found = topics_.find(job);
      if (found == topics_.end()) continue;
      for (const auto& [key, watcher] : found->second.watchers) woken.push_back(watcher);
    }
    dirty_.clear();
    if (heartbeat) {
      for (const auto& [job, topic] : topics_) {
        for (const auto& [key, watcher] : topic.watchers) beating.push_back(watcher);
      }
    }
    lock.unlock();
    for (const auto& weak : woken) {
      if (const auto watcher = weak.lock()) watcher->Wake(/*heartbeat=*/false);
    }
    for (const auto& weak : beating) {
      if (const auto watcher = weak.lock()) watcher->Wake(/*heartbeat=*/true);
    }
    lock.lock();
  }
}

absl::StatusOr<WatchHub::Page> WatchHub::Read(const std::string& job, int64_t after_sequence) {
  Page page;
  {
    const std::lock_guard lock(mutex_);
    const auto found = topics_.find(job);
    if (found != topics_.end() && !found->second.recent.empty() &&
        found->second.recent.front()->sequence() <= after_sequence + 1) {
      for (const auto& event : found->second.recent) {
        if (event->sequence() > after_sequence) page.events.push_back(event);
      }
      page.complete = found->second.ended;
      return page;
    }
  }
  // The job is read first: events that come between the two reads only make the page longer.
  LEMO_ASSIGN_OR_RETURN(const lemo::v1::Job stored, store_->GetJob(job));
  LEMO_ASSIGN_OR_RETURN(std::vector<lemo::v1::JobEvent> events,
                        store_->Events(job, after_sequence, kPage));
  page.complete = HasEnded(stored.state()) && events.size() < kPage;
  for (lemo::v1::JobEvent& event : events) {
    page.events.push_back(std::make_shared<const lemo::v1::JobEvent>(std::move(event)));
  }
  return page;
}

}  // namespace lemo::coordinator
