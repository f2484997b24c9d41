#include "worker/agent/outbox.h"

#include <algorithm>
#include <iostream>
#include <utility>

namespace lemo::agent {
namespace {

using lemo::v1::AgentMessage;

// Events that were sent and not yet acknowledged, at most; of one message likewise.
constexpr int64_t kWindow = 1024;
constexpr size_t kMessageEvents = 256;
constexpr size_t kMessageBytes = 256 << 10;
// Logs give way to everything else: none are sent while so many messages wait.
constexpr size_t kBusyQueue = 16;
constexpr auto kLogPause = std::chrono::seconds(1);
constexpr auto kEndPause = std::chrono::seconds(3);

}  // namespace

Outbox::Outbox(lemo::v1::AttemptId id, Spool spool, std::vector<LogTail> logs)
    : id_(std::move(id)), spool_(std::move(spool)), logs_(std::move(logs)) {}

absl::Status Outbox::Add(std::vector<lemo::v1::RunEvent> events) {
  return spool_.Append(std::move(events));
}

void Outbox::Connected(int64_t through) {
  start_sent_ = false;
  checkpoint_sent_ = false;
  acknowledged_ = through;
  sent_ = through;
  log_due_ = end_due_ = Instant{};
}

void Outbox::Acknowledged(int64_t through) { acknowledged_ = std::max(acknowledged_, through); }

void Outbox::SendEvents(Session& session) {
  while (sent_ < spool_.last() && sent_ - acknowledged_ < kWindow) {
    auto events = spool_.Read(sent_ + 1, kMessageEvents, kMessageBytes);
    if (!events.ok() || events->empty()) {
      std::cerr << "lemo-worker: " << id_.job()
                << ": cannot read its events: " << events.status().message() << "\n";
      return;
    }
    AgentMessage message;
    lemo::v1::AttemptEvents& batch = *message.mutable_events();
    *batch.mutable_id() = id_;
    batch.set_first_sequence(sent_ + 1);
    for (lemo::v1::RunEvent& event : *events) *batch.add_events() = std::move(event);
    const int64_t count = batch.events_size();
    if (!session.Send(std::move(message))) return;
    sent_ += count;
  }
}

void Outbox::SendLogs(Session& session) {
  for (LogTail& log : logs_) {
    while (session.queued() < kBusyQueue) {
      AgentMessage message;
      *message.mutable_log()->mutable_id() = id_;
      *message.mutable_log()->mutable_chunk() = log.Next();
      if (message.log().chunk().data().empty() || !session.Send(std::move(message))) break;
    }
  }
}

Instant Outbox::Report(Session& session, Instant now) {
  if (started_ && !start_sent_) {
    AgentMessage message;
    *message.mutable_started()->mutable_id() = id_;
    start_sent_ = session.Send(std::move(message));
  }
  SendEvents(session);
  // The log's rest goes before the end: what comes after it is of no current attempt any more.
  if (logging_ && (now >= log_due_ || ended_)) {
    SendLogs(session);
    log_due_ = now + kLogPause;
  }
  if (checkpoint_ && !checkpoint_sent_) {
    AgentMessage message;
    *message.mutable_checkpoint()->mutable_id() = id_;
    *message.mutable_checkpoint()->mutable_checkpoint() = *checkpoint_;
    checkpoint_sent_ = session.Send(std::move(message));
  }
  if (ended_ && sent_ >= spool_.last() && now >= end_due_) {
    AgentMessage message;
    *message.mutable_ended() = *ended_;
    message.mutable_ended()->set_last_sequence(std::max(spool_.last(), acknowledged_));
    if (session.Send(std::move(message))) end_due_ = now + kEndPause;
  }
  Instant next = logging_ ? log_due_ : kNever;
  if (ended_) next = std::min(next, std::max(end_due_, now + std::chrono::milliseconds(100)));
  return next;
}

}  // namespace lemo::agent
