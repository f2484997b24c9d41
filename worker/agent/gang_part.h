// A node's part of a gang that another node leads.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lemo/v1/node_service.pb.h"
#include "worker/agent/attempt_journal.h"
#include "worker/agent/clock.h"
#include "worker/agent/waker.h"

namespace lemo::agent {

// Between the attempt, which belongs to the agent's loop and alone starts processes, and the calls
// of the lead's agent, which wait in threads of gRPC. Thread-safe.
//
// A daemon is started once: whatever ends it ends the gang, and the next attempt has another part.
class GangPart {
 public:
  // Ranks `first` to `first + count - 1` are this node's; how they end is read from `journal`.
  // `waker` outlives it.
  GangPart(std::string token, AttemptJournal journal, int first, int count, Waker* waker);

  // --- Calls. ---
  bool Admits(std::string_view token) const;
  // Whether the node is ready, now or within `timeout`. Aborted once the attempt is over here.
  absl::StatusOr<bool> AwaitReady(BootClock::duration timeout);
  // Has the daemon started. FailedPrecondition when the node is not ready, AlreadyExists at the
  // second call, Aborted as above, and whatever hinders the start.
  absl::Status StartDaemon(std::vector<std::string> arguments, BootClock::duration timeout);
  // Waits for the daemon's end: its status, as waitpid tells it; nullopt when the time is up.
  std::optional<int> AwaitDaemon(BootClock::duration timeout);
  // From now on nothing is started here; the daemon and its ranks are killed.
  void EndRanks();
  // Of ranks that have ended.
  lemo::v1::EndRanksResponse RankEnds() const;
  std::filesystem::path daemon_log() const { return journal_.mpirun_log(); }

  // --- The loop. ---
  void SetReady();
  // What the daemon is to be started with, once it is asked for. Answered by Started.
  std::optional<std::vector<std::string>> TakeStart();
  void Started(absl::Status status);
  void Ended(int status);
  bool end_asked() const;
  // The attempt is over here: calls are refused and answered.
  void Close();

 private:
  enum class Daemon { kNone, kAsked, kStarting, kRunning, kEnded };

  const std::string token_;
  const AttemptJournal journal_;
  const int first_;
  const int count_;
  Waker* const waker_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool ready_ = false;
  bool end_asked_ = false;
  bool closed_ = false;
  Daemon daemon_ = Daemon::kNone;
  std::vector<std::string> arguments_;
  absl::Status started_;
  int status_ = 0;
};

// Those of the attempts that are here. Thread-safe.
class GangParts {
 public:
  void Add(const lemo::v1::AttemptId& id, std::shared_ptr<GangPart> part);
  // Closes it as well.
  void Remove(const lemo::v1::AttemptId& id);
  // NotFound for an attempt that is not here, PermissionDenied for another token than its own.
  absl::StatusOr<std::shared_ptr<GangPart>> Find(const lemo::v1::GangKey& key) const;
  void CloseAll();

 private:
  using Key = std::pair<std::string, int>;

  mutable std::mutex mutex_;
  std::map<Key, std::shared_ptr<GangPart>> parts_;
};

}  // namespace lemo::agent
