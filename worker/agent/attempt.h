// One placement of one job on this machine, from its assignment until it is forgotten.
#pragma once

#include <poll.h>

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "lemo/v1/worker_service.grpc.pb.h"
#include "worker/agent/attempt_journal.h"
#include "worker/agent/checkpoint_share.h"
#include "worker/agent/devices.h"
#include "worker/agent/event_reader.h"
#include "worker/agent/file_cache.h"
#include "worker/agent/gang.h"
#include "worker/agent/gang_command.h"
#include "worker/agent/gang_part.h"
#include "worker/agent/gang_peers.h"
#include "worker/agent/limits.h"
#include "worker/agent/metrics.h"
#include "worker/agent/model_cache.h"
#include "worker/agent/options.h"
#include "worker/agent/outbox.h"
#include "worker/agent/rank_spec.h"
#include "worker/agent/verdict.h"
#include "worker/agent/waker.h"
#include "worker/agent/watchdog.h"

namespace lemo::agent {

// What all attempts share. Outlives them.
struct AttemptContext {
  const AgentOptions* options = nullptr;
  const std::vector<LocalDevice>* devices = nullptr;
  FileCache* cache = nullptr;
  ModelCache* models = nullptr;
  lemo::v1::WorkerService::Stub* coordinator = nullptr;
  lemo::v1::JobService::Stub* jobs = nullptr;
  Waker* waker = nullptr;
  Watchdog* watchdog = nullptr;  // may be null
  Metrics* metrics = nullptr;    // may be null
  GangParts* parts = nullptr;
  std::string worker;  // `workers/{id}` that this is
};

// Fetches files (a thread of its own), runs the gang, spools its events, hands over the result
// (again a thread), and ends. Everything public belongs to the agent's loop, which is also the
// thread that Gang::Start wants; both threads only fill a result and wake the loop.
//
// Of a gang over several nodes the lead does all of this: between fetching and its gang it waits
// until the others are ready, and when the gang has ended it ends what is left elsewhere. On
// another node the attempt fetches, is ready (GangPart), runs Open MPI's daemon while the lead
// wants it, and ends only when it is told to, or has to.
class Attempt {
 public:
  // `directory` is the job's. Fetching starts at once. The status is of the disk.
  static absl::StatusOr<std::unique_ptr<Attempt>> Accept(const AttemptContext& context,
                                                         const lemo::v1::Assignment& assignment,
                                                         const std::filesystem::path& directory);
  // What an agent that died left in `directory`: ends its ranks, if any live, and has the attempt
  // end, or the result handed over when the ranks had succeeded. Blocks up to `patience` for ranks
  // that are writing a checkpoint. NotFound when nothing was left.
  static absl::StatusOr<std::unique_ptr<Attempt>> Recover(const AttemptContext& context,
                                                          const std::filesystem::path& directory,
                                                          BootClock::duration patience);
  // Kills the gang and ends transfers.
  ~Attempt();
  Attempt(const Attempt&) = delete;
  Attempt& operator=(const Attempt&) = delete;

  const lemo::v1::AttemptId& id() const { return record_.id; }
  Outbox& outbox() { return outbox_; }
  bool ended() const { return outbox_.ended(); }
  // Whether processes of it live.
  bool running() const { return gang_ != nullptr; }
  AttemptStatus Status() const;

  // Descriptors to wait for.
  void AddPollFds(std::vector<pollfd>* fds) const;
  // Does what is due. Answers when to be called again without other cause.
  Instant Advance(Instant now);

  // What each rank may have from now on, as the coordinator says: written where the ranks look for
  // it before their next step. Nothing to an attempt without processes.
  void SetBudget(int64_t bytes);
  // The coordinator's wish, or that of who ends the agent: checkpoint and stop, killed after
  // `patience`; or stop at once.
  void Stop(Instant now, BootClock::duration patience);
  void Kill();
  // The lease runs out: as Stop, but it counts as a fault, and they are killed at `kill_at`. Does
  // nothing to an attempt without processes but ends its fetching.
  void Fence(Instant kill_at);
  // The coordinator wants no more of it. Its processes are killed; when forgotten() says so the
  // object may go, and Clean is to be called before.
  void Forget();
  bool forgotten() const { return forgotten_ && gang_ == nullptr && transfer_ == nullptr; }
  // Removes its files; all of the job's when nothing can come after it.
  void Clean();

 private:
  // Work of a thread, and whether it is done.
  enum class Work { kFetching, kGathering, kEndingOthers, kHandingOver };
  struct Transfer {
    Work work = Work::kFetching;
    Canceller canceller;
    std::thread thread;
    std::atomic<bool> done{false};
    absl::Status status;
    std::map<std::string, std::string> files;   // of fetching: name -> path
    ModelDirectory model;                       // of fetching
    std::vector<lemo::v1::Artifact> artifacts;  // of handing over
    std::map<int, RemoteEnd> ends;              // of ending others
  };

  Attempt(const AttemptContext& context, AttemptRecord record, AttemptJournal journal, Spool spool);

  bool alone() const { return record_.gang_ranks == 1; }
  bool over_several() const { return assignment_.nodes_size() > 1; }
  bool leads() const { return part_ == nullptr; }
  bool Does(Work work) const { return transfer_ != nullptr && transfer_->work == work; }
  // Has `work` done by a thread.
  template <typename Do>
  void StartTransfer(Work work, Do what);
  void StartFetching();
  void StartGathering();
  void StartEndingOthers();
  void StartHandingOver();
  void FinishTransfer();
  // What follows when files and model are here.
  absl::Status BeginRun(const Transfer& transfer);
  absl::Status WriteSpecs(const Transfer& transfer);
  absl::Status StartGang();
  absl::Status StartDaemon(const std::vector<std::string>& arguments);
  NodeSettings Here() const;
  absl::Status Launch(GangCommand command, const std::filesystem::path& log);
  // Of a part of a gang: what the lead has asked for.
  void AdvancePart(Instant now);
  void ReadEvents();
  void Note(const lemo::v1::StepEvent& step);
  void CheckLimits(Instant now);
  void FindFirstFailure();
  void FinishGang();
  void FinishDaemon();
  void Conclude();
  void DropGang();
  void End(lemo::v1::AttemptEnded ended);
  // The gang is to be killed because of `failure`.
  void EndGang(lemo::v1::Failure failure);

  const AttemptContext context_;
  AttemptRecord record_;
  const AttemptJournal journal_;
  Outbox outbox_;
  lemo::v1::Assignment assignment_;
  PathNames names_;

  std::unique_ptr<Transfer> transfer_;
  std::shared_ptr<GangPart> part_;  // when another node leads
  bool daemon_ended_ = false;
  GangFile peers_;                        // when this one does
  std::map<int, RemoteEnd> remote_ends_;  // of ranks on other nodes
  bool killed_ = false;                   // on request, by whoever ends the others as well
  std::string device_;                    // of the first rank here
  ModelDirectory model_;                  // while the gang reads it
  std::unique_ptr<Gang> gang_;
  std::unique_ptr<CheckpointShare> share_;             // from the gang's start on
  std::optional<lemo::v1::AttemptEnded> pending_end_;  // waits for the last checkpoint to be shared
  EventReader reader_;
  bool events_over_ = false;
  Instant started_at_{};
  std::optional<lemo::v1::StepEvent> last_step_;
  std::optional<double> last_recall_;  // of the steps told of, as AttemptStatus has them
  std::optional<int64_t> bad_blocks_;
  std::optional<Instant> last_checkpoint_;
  Instant kill_at_ = kNever;
  Instant limits_due_{};
  GangEnd end_;  // filled in as it becomes known
  bool stop_before_start_ = false;
  bool final_ = false;  // no later attempt of the job can go on from this one
  bool forgotten_ = false;
};

}  // namespace lemo::agent
