#include "worker/agent/gang_part.h"

#include "absl/strings/str_cat.h"
#include "worker/agent/log_tail.h"
#include "worker/agent/rank_runner.h"

namespace lemo::agent {
namespace {

constexpr int64_t kLogTailBytes = 4 << 10;

absl::Status Over() { return absl::AbortedError("the attempt is over on this node"); }

}  // namespace

GangPart::GangPart(std::string token, AttemptJournal journal, int first, int count, Waker* waker)
    : token_(std::move(token)),
      journal_(std::move(journal)),
      first_(first),
      count_(count),
      waker_(waker) {}

bool GangPart::Admits(std::string_view token) const {
  if (token_.empty() || token.size() != token_.size()) return false;
  // All of it, so that the time tells nothing of how much is right.
  unsigned char difference = 0;
  for (size_t i = 0; i < token_.size(); ++i) {
    difference |= static_cast<unsigned char>(token[i] ^ token_[i]);
  }
  return difference == 0;
}

absl::StatusOr<bool> GangPart::AwaitReady(BootClock::duration timeout) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait_for(lock, timeout, [this] { return ready_ || closed_ || end_asked_; });
  if (closed_ || end_asked_) return Over();
  return ready_;
}

absl::Status GangPart::StartDaemon(std::vector<std::string> arguments,
                                   BootClock::duration timeout) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (closed_ || end_asked_) return Over();
  if (!ready_) return absl::FailedPreconditionError("the node is not ready for its ranks");
  if (daemon_ != Daemon::kNone) return absl::AlreadyExistsError("the daemon was started already");
  daemon_ = Daemon::kAsked;
  arguments_ = std::move(arguments);
  waker_->Wake();
  const bool answered = changed_.wait_for(lock, timeout, [this] {
    return closed_ || end_asked_ || daemon_ == Daemon::kRunning || daemon_ == Daemon::kEnded;
  });
  if (closed_ || end_asked_) return Over();
  if (answered) return started_;
  end_asked_ = true;  // whoever asked hears that it was not started, so it must not be
  return absl::DeadlineExceededError("the daemon was not started in time");
}

std::optional<int> GangPart::AwaitDaemon(BootClock::duration timeout) {
  std::unique_lock<std::mutex> lock(mutex_);
  // Of a part that is closed while its daemon runs the loop still tells the end.
  changed_.wait_for(lock, timeout, [this] { return daemon_ == Daemon::kEnded; });
  return daemon_ == Daemon::kEnded ? std::optional<int>(status_) : std::nullopt;
}

void GangPart::EndRanks() {
  std::lock_guard<std::mutex> lock(mutex_);
  end_asked_ = true;
  // One that was only asked for never starts.
  if (daemon_ == Daemon::kNone || daemon_ == Daemon::kAsked) daemon_ = Daemon::kEnded;
  waker_->Wake();
  changed_.notify_all();
}

lemo::v1::EndRanksResponse GangPart::RankEnds() const {
  lemo::v1::EndRanksResponse response;
  for (int rank = first_; rank < first_ + count_; ++rank) {
    const std::optional<RankEnd> end = ReadRankEnd(journal_.rank_end(rank));
    if (!end) continue;
    lemo::v1::RankEnded& ended = *response.add_ranks();
    ended.set_rank(rank);
    ended.set_status(end->status);
    ended.set_for_others(end->for_others);
    const std::chrono::nanoseconds now = BootClock::now().time_since_epoch();
    ended.set_seconds_ago(static_cast<double>(now.count() - end->boot_ns) * 1e-9);
    if (end->status != 0 && !end->for_others) {
      ended.set_log_tail(LastBytes(journal_.log(rank), kLogTailBytes));
    }
  }
  return response;
}

void GangPart::SetReady() {
  std::lock_guard<std::mutex> lock(mutex_);
  ready_ = true;
  changed_.notify_all();
}

std::optional<std::vector<std::string>> GangPart::TakeStart() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (daemon_ != Daemon::kAsked || end_asked_ || closed_) return std::nullopt;
  daemon_ = Daemon::kStarting;
  return std::move(arguments_);
}

void GangPart::Started(absl::Status status) {
  std::lock_guard<std::mutex> lock(mutex_);
  daemon_ = status.ok() ? Daemon::kRunning : Daemon::kEnded;
  started_ = std::move(status);
  changed_.notify_all();
}

void GangPart::Ended(int status) {
  std::lock_guard<std::mutex> lock(mutex_);
  daemon_ = Daemon::kEnded;
  status_ = status;
  changed_.notify_all();
}

bool GangPart::end_asked() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return end_asked_;
}

void GangPart::Close() {
  std::lock_guard<std::mutex> lock(mutex_);
  closed_ = true;
  if (daemon_ == Daemon::kNone || daemon_ == Daemon::kAsked) daemon_ = Daemon::kEnded;
  changed_.notify_all();
}

void GangParts::Add(const lemo::v1::AttemptId& id, std::shared_ptr<GangPart> part) {
  std::lock_guard<std::mutex> lock(mutex_);
  parts_[{id.job(), id.attempt()}] = std::move(part);
}

void GangParts::Remove(const lemo::v1::AttemptId& id) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = parts_.find({id.job(), id.attempt()});
  if (found == parts_.end()) return;
  found->second->Close();
  parts_.erase(found);
}

absl::StatusOr<std::shared_ptr<GangPart>> GangParts::Find(const lemo::v1::GangKey& key) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = parts_.find({key.id().job(), key.id().attempt()});
  if (found == parts_.end()) {
    return absl::NotFoundError(
        absl::StrCat("attempt ", key.id().attempt(), " of ", key.id().job(), " is not here"));
  }
  if (!found->second->Admits(key.token())) {
    return absl::PermissionDeniedError("the token is not that of the attempt");
  }
  return found->second;
}

void GangParts::CloseAll() {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [key, part] : parts_) part->Close();
}

}  // namespace lemo::agent
