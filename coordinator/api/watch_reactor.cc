#include "coordinator/api/watch_reactor.h"

#include <utility>

#include "coordinator/api/errors.h"
#include "coordinator/api/names.h"
#include "google/protobuf/util/time_util.h"

namespace lemo::coordinator {

grpc::ServerWriteReactor<lemo::v1::WatchJobResponse>* WatchReactor::Create(
    WatchHub* hub, const lemo::v1::WatchJobRequest& request) {
  auto reactor = std::make_shared<WatchReactor>(hub, request);
  reactor->self_ = reactor;
  absl::Status valid = CheckName("jobs", request.name(), "name");
  if (valid.ok() && request.after_sequence() < 0) {
    valid = absl::InvalidArgumentError("after_sequence: cannot be negative");
  }
  if (!valid.ok()) {
    reactor->End(ToGrpc(valid));
  } else {
    hub->Subscribe(reactor->job_, reactor);
    reactor->Next();
  }
  return reactor.get();
}

WatchReactor::WatchReactor(WatchHub* hub, const lemo::v1::WatchJobRequest& request)
    : hub_(hub), job_(request.name()), cursor_(request.after_sequence()) {}

void WatchReactor::Wake(bool heartbeat) {
  {
    const std::lock_guard lock(mutex_);
    (heartbeat ? heartbeat_ : woken_) = true;
    if (busy_ || ended_) return;
    busy_ = true;
  }
  Next();
}

void WatchReactor::OnWriteDone(bool ok) {
  if (ok) {
    Next();
  } else {
    End(grpc::Status::CANCELLED);
  }
}

void WatchReactor::OnCancel() {
  {
    const std::lock_guard lock(mutex_);
    cancelled_ = true;
    if (busy_ || ended_) return;  // whoever is busy sees the mark
    busy_ = true;
  }
  End(grpc::Status::CANCELLED);
}

void WatchReactor::OnDone() {
  hub_->Unsubscribe(job_, this);
  self_.reset();  // may be the end of `this`
}

void WatchReactor::Next() {
  for (;;) {
    {
      const std::lock_guard lock(mutex_);
      if (cancelled_) break;
    }
    if (!page_.empty()) {
      *response_.mutable_event() = *page_.front();
      cursor_ = page_.front()->sequence();
      page_.pop_front();
      StartWrite(&response_);
      return;
    }
    if (complete_) return End(grpc::Status::OK);
    {
      const std::lock_guard lock(mutex_);
      woken_ = false;
    }
    absl::StatusOr<WatchHub::Page> page = hub_->Read(job_, cursor_);
    if (!page.ok()) return End(ToGrpc(page.status()));
    complete_ = page->complete;
    page_.assign(page->events.begin(), page->events.end());
    if (!page_.empty() || complete_) continue;
    bool beat = false;
    {
      const std::lock_guard lock(mutex_);
      if (woken_ || cancelled_) continue;
      beat = std::exchange(heartbeat_, false);
      if (!beat) {
        busy_ = false;
        return;
      }
    }
    *response_.mutable_heartbeat() = google::protobuf::util::TimeUtil::GetCurrentTime();
    StartWrite(&response_);
    return;
  }
  End(grpc::Status::CANCELLED);
}

void WatchReactor::End(const grpc::Status& status) {
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(ended_, true)) return;
  }
  Finish(status);
}

}  // namespace lemo::coordinator
