// What one attempt has to tell the coordinator.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "lemo/v1/worker_service.pb.h"
#include "worker/agent/attempt_journal.h"
#include "worker/agent/clock.h"
#include "worker/agent/log_tail.h"
#include "worker/agent/session.h"
#include "worker/agent/spool.h"

namespace lemo::agent {

// Sends, over whatever session there is: the start, events in order from where the coordinator
// stands, log chunks, the newest checkpoint, and at last the end, again and again until it is
// forgotten. Events wait on disk; a window bounds how many are under way. Not thread-safe.
class Outbox {
 public:
  // `spool` may hold events already, of an agent that died.
  // `logs` are of the ranks.
  Outbox(lemo::v1::AttemptId id, Spool spool, std::vector<LogTail> logs);

  // --- From the ranks. ---
  void SetStarted() { started_ = logging_ = true; }
  // Ranks write logs, though it is another agent's to say that they started.
  void SetLogging() { logging_ = true; }
  absl::Status Add(std::vector<lemo::v1::RunEvent> events);
  // The newest that was uploaded.
  void SetCheckpoint(lemo::v1::JobCheckpoint checkpoint) {
    checkpoint_ = std::move(checkpoint);
    checkpoint_sent_ = false;
  }
  // The last word. `last_sequence` is filled in when it is sent.
  void SetEnded(lemo::v1::AttemptEnded ended) { ended_ = std::move(ended); }
  bool ended() const { return ended_.has_value(); }
  absl::Status SyncEvents() { return spool_.Sync(); }
  int64_t last_sequence() const { return spool_.last(); }
  int64_t waiting_events() const { return std::max<int64_t>(spool_.last() - acknowledged_, 0); }
  int64_t spool_bytes() const { return spool_.bytes(); }

  // --- To the coordinator. ---
  // A new session, whose Welcome said that events through `through` are stored.
  void Connected(int64_t through);
  void Acknowledged(int64_t through);
  // Sends what may be sent now; answers when to be called again without other cause.
  Instant Report(Session& session, Instant now);

 private:
  void SendEvents(Session& session);
  void SendLogs(Session& session);

  const lemo::v1::AttemptId id_;
  Spool spool_;
  std::vector<LogTail> logs_;
  bool started_ = false;
  bool logging_ = false;
  std::optional<lemo::v1::JobCheckpoint> checkpoint_;
  std::optional<lemo::v1::AttemptEnded> ended_;

  // Of the current session.
  bool start_sent_ = false;
  bool checkpoint_sent_ = false;
  int64_t acknowledged_ = 0;  // stored by the coordinator; may be beyond spool_.last() after a
                              // power cut that took events which were sent
  int64_t sent_ = 0;
  Instant log_due_{};
  Instant end_due_{};
};

}  // namespace lemo::agent
