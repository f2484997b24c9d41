// What the end of a gang means.
#pragma once

#include <optional>
#include <string>

#include "lemo/v1/run_event.pb.h"
#include "lemo/v1/worker_service.pb.h"

namespace lemo::agent {

struct GangEnd {
  int status = 0;  // as waitpid tells it, of the rank; of several, of the one that failed first
  int rank = 0;    // that one's number
  int ranks = 1;
  // Somebody asked for the end: the coordinator, or a person who ends the agent.
  bool asked_to_stop = false;
  // Why the agent itself ended the gang: a limit, a lost lease. It is the failure unless the ranks
  // had succeeded by then.
  std::optional<lemo::v1::Failure> failure;
  // The last ErrorEvent, with names for paths. It is rank 0's; `error_is_cause` says that it tells
  // what `rank` died of, which may be another.
  std::optional<lemo::v1::ErrorEvent> error;
  bool error_is_cause = false;
  std::string log_tail;
};

// Outcome and failure of the attempt; SUCCEEDED means that its result is to be handed over.
lemo::v1::AttemptEnded Judge(const GangEnd& end);

// The rank that the message of an ErrorEvent is about, when it is not rank 0's own: `rank 3: ...`.
std::optional<int> RankNamedIn(const std::string& message);

// A failure of ours or of the machine.
lemo::v1::Failure SystemError(const std::string& message);

}  // namespace lemo::agent
