#include "coordinator/runtime/janitor.h"

#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"

namespace lemo::coordinator {
namespace {

constexpr absl::Duration kNamelessMax = absl::Hours(24);

absl::Time EndOf(const lemo::v1::Job& job) {
  return absl::FromUnixSeconds(job.end_time().seconds()) +
         absl::Nanoseconds(job.end_time().nanos());
}

}  // namespace

Janitor::Janitor(const JanitorOptions& options, Store* store, ArtifactStore* artifacts,
                 ArtifactStore* checkpoints, LogFiles* logs)
    : options_(options),
      store_(store),
      artifacts_(artifacts),
      checkpoints_(checkpoints),
      logs_(logs),
      thread_([this] { Loop(); }) {}

Janitor::~Janitor() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

absl::Status Janitor::Name(const std::string& sha256, const std::function<absl::Status()>& name) {
  const std::lock_guard lock(name_mutex_);
  if (!artifacts_->Refresh(sha256)) {
    return absl::AbortedError("the content was deleted meanwhile; upload it again");
  }
  return name();
}

void Janitor::DropArtifacts(const std::vector<std::string>& sha256) { Drop(sha256, false); }
void Janitor::DropCheckpoints(const std::vector<std::string>& sha256) { Drop(sha256, true); }

void Janitor::Drop(const std::vector<std::string>& sha256, bool checkpoint) {
  {
    const std::lock_guard lock(mutex_);
    for (const std::string& one : sha256) dropped_.push_back({one, checkpoint});
  }
  changed_.notify_one();
}

void Janitor::RemoveDropped(const std::vector<Dropped>& dropped) {
  const std::lock_guard removal_lock(removal_mutex_);
  for (const Dropped& one : dropped) {
    const std::lock_guard name_lock(name_mutex_);
    const absl::StatusOr<bool> named = store_->HasContent(one.sha256, one.checkpoint);
    // What a failure leaves is found by a sweep.
    if (!named.ok() || *named) continue;
    (one.checkpoint ? checkpoints_ : artifacts_)->Remove(one.sha256).IgnoreError();
  }
}

absl::Status Janitor::SweepContents(bool checkpoints, absl::Time before, Swept* swept) {
  const std::lock_guard removal_lock(removal_mutex_);
  ArtifactStore* const contents = checkpoints ? checkpoints_ : artifacts_;
  LEMO_ASSIGN_OR_RETURN(const int64_t uploads, contents->RemoveOldUploads(before));
  swept->uploads += uploads;
  return contents->VisitOld(before, [&](const std::string& sha256) -> absl::Status {
    const std::lock_guard name_lock(name_mutex_);
    LEMO_ASSIGN_OR_RETURN(const bool named, store_->HasContent(sha256, checkpoints));
    if (!named && contents->RemoveIfOld(sha256, before)) ++swept->contents;
    return absl::OkStatus();
  });
}

absl::StatusOr<Janitor::Swept> Janitor::Sweep(absl::Time now) {
  Swept swept;
  if (options_.keep_events != absl::InfiniteDuration()) {
    LEMO_ASSIGN_OR_RETURN(swept.events, store_->Expire(now - options_.keep_events));
  }
  if (options_.keep_logs != absl::InfiniteDuration()) {
    for (const std::string& name : logs_->Jobs()) {
      const absl::StatusOr<lemo::v1::Job> job = store_->GetJob(name);
      if (!job.ok() && !absl::IsNotFound(job.status())) return job.status();
      if (!job.ok() || !HasEnded(job->state()) || EndOf(*job) >= now - options_.keep_logs) continue;
      logs_->Remove(name);
      ++swept.logs;
    }
  }
  LEMO_RETURN_IF_ERROR(SweepContents(/*checkpoints=*/false, now - kNamelessMax, &swept));
  LEMO_RETURN_IF_ERROR(SweepContents(/*checkpoints=*/true, now - kNamelessMax, &swept));
  return swept;
}

void Janitor::Loop() {
  // A clock that is set forward must not make everything old: time since the start is steady.
  const auto start = std::chrono::steady_clock::now();
  const absl::Time start_time = absl::Now();
  auto next_sweep = start + options_.interval;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    changed_.wait_until(lock, next_sweep, [this] { return stopping_ || !dropped_.empty(); });
    if (stopping_) return;
    const std::vector<Dropped> dropped = std::exchange(dropped_, {});
    lock.unlock();
    if (!dropped.empty()) RemoveDropped(dropped);
    if (const auto now = std::chrono::steady_clock::now(); now >= next_sweep) {
      const absl::StatusOr<Swept> swept = Sweep(start_time + absl::FromChrono(now - start));
      if (!swept.ok())
        std::cerr << absl::StrCat(
            "lemo-coordinator: clean-up: ", std::string(swept.status().message()), "\n");
      next_sweep = now + options_.interval;
    }
    lock.lock();
  }
}

}  // namespace lemo::coordinator
