// The coordinator's state machine: jobs, workers, attempts and leases.
//
// Pure: `Step` takes an event and the time and answers effects, in order; no thread, clock, file or
// socket. The runtime must carry effects out in order, and must have made every Persist of a step
// durable before it does anything else of that step: replies, messages and validations follow what
// is stored.
//
// Rules that hold after every step (design sections 3 and 8):
//  - a job has at most one attempt that may run: the current one; its number only grows;
//  - an attempt over several workers, a gang, is placed on all of them or on none. It ends by its
//    lead's word, or by the first worker of which it is lost or fails. It is over, and its devices
//    are given to nobody else, when every worker has said that nothing of it is left there, or was
//    lost;
//  - jobs share a device only by contract: each has one, and together they fit in its memory, what
//    they have in common counted once. One that may be cut counts with what it had until a step of
//    it has kept to less;
//  - a worker may run an attempt only under its lease. A job of a worker whose lease has run out is
//    placed anew only after the lease and a margin for the agent to end its ranks;
//  - an attempt's events are taken once, in order, and only while the attempt is current; its end
//    counts when all of its events are stored;
//  - a job that has ended never changes again, and is dropped from memory after its Persist.
//
// Time. `now` is what timestamps show. Leases and back-offs run on a clock of the core's own, which
// stands still when `now` goes back, and in one step goes on by no more than the time until
// NextWake() and one heartbeat: a clock that was set, or a coordinator that was stopped, ends
// nobody's lease early.
//
// Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "lemo/v1/job.pb.h"
#include "lemo/v1/worker_service.pb.h"
#include "scheduler/occupancy.h"
#include "scheduler/scheduler.h"

namespace lemo::coordinator {

// A job with what only the coordinator needs to know of it. What the store keeps.
struct JobRecord {
  lemo::v1::Job job;
  // Events of the current attempt that are stored: where its agent goes on.
  int64_t attempt_sequence = 0;
  // Earliest time of the next attempt, after a fault.
  absl::Time not_before = absl::InfinitePast();
  // When the job became QUEUED last: its place in the queue.
  absl::Time queued_time = absl::InfinitePast();
  // Order among jobs queued at the same instant, and of submission.
  int64_t number = 0;
  double run_seconds_used = 0;
  // When the job became RUNNING last, on the core's clock: what a lost attempt is charged for.
  absl::Time running_since = absl::InfinitePast();
  // Files that the job names, with sizes and checksums; and its model.
  std::vector<lemo::v1::InputFile> files;
  std::string model_path;
  std::string model_fingerprint;
  std::vector<lemo::v1::ModelFile> model_files;  // none in jobs of older versions
  // Of the current attempt on job.worker(); job.nodes() has those of all workers.
  std::vector<int> devices;
  // Of the SubmitJob call, and what it asked for: a repeated id answers the same job. May be empty.
  std::string request_id;
  std::string request_hash;
};

// --- Events ---

// A job of the API, which is then VALIDATING, or PLANNING with `spec.plan`: its spec was checked as
// far as the request path does. `record.job` has name,
// spec and create_time, the record what the job names (files, model) and a `number` larger than any
// that the store knows; the rest is filled in. ALREADY_EXISTS for a name that is taken.
struct Submitted {
  JobRecord record;
};
struct Validated {
  std::string job;
  std::optional<lemo::v1::Failure> failure;  // nullopt: the job may be queued
  int64_t memory_bytes = 0;  // estimate for a rank when the spec names none; 0: unknown
  std::optional<lemo::v1::Contract> contract = std::nullopt;  // of a job that has `spec.plan`
};
struct CancelRequested {
  std::string job;
};
struct PauseRequested {
  std::string job;
};
struct ResumeRequested {
  std::string job;
};
// A stream of an agent opened with this Hello. `session` is new for every stream, not 0; what comes
// of another session than a worker's newest is dropped.
struct AgentConnected {
  int64_t session = 0;
  lemo::v1::Hello hello;
};
struct AgentSaid {
  int64_t session = 0;
  lemo::v1::AgentMessage message;
};
struct AgentDisconnected {
  int64_t session = 0;
};
struct CordonRequested {
  std::string worker;
  bool cordon = true;
};
struct DrainRequested {
  std::string worker;
};
// Time passes: leases end, back-offs are over. At least at NextWake().
struct Tick {};

using Event = std::variant<Submitted, Validated, CancelRequested, PauseRequested, ResumeRequested,
                           AgentConnected, AgentSaid, AgentDisconnected, CordonRequested,
                           DrainRequested, Tick>;

// --- Effects ---

// The job's new state and the events that came of it, which continue its sequence. What a step
// persists comes first among its effects and is one transaction: one job may have been given what
// another has left.
struct Persist {
  JobRecord record;
  std::vector<lemo::v1::JobEvent> events;
};
// A worker's cordon outlives a restart of the coordinator.
struct PersistWorker {
  std::string worker;
  bool cordoned = false;
};
struct Send {
  int64_t session = 0;
  lemo::v1::CoordinatorMessage message;
};
// The session's stream is to be closed: its worker has a newer one, or it broke the protocol.
struct Close {
  int64_t session = 0;
  absl::Status reason;
};
struct StartValidation {
  JobRecord record;
};
struct StopValidation {
  std::string job;
};
// Log bytes of a current attempt, to be appended to the rank's log.
struct AppendLog {
  std::string job;
  lemo::v1::LogChunk chunk;
};

// Content of a checkpoint that the job names no more. Other jobs may: those of one spec and seed
// make the same checkpoints.
struct DropContent {
  std::vector<std::string> sha256;
};

using Effect = std::variant<Persist, PersistWorker, Send, Close, StartValidation, StopValidation,
                            AppendLog, DropContent>;

struct CoreOptions {
  absl::Duration lease = absl::Seconds(10);
  absl::Duration heartbeat = absl::Seconds(2);
  // After a lease has run out, how long an agent that is cut off may take to end its ranks. The
  // agent starts to do so when two thirds of its lease are over without a renewal.
  absl::Duration fence_margin = absl::Seconds(5);
  // Grace for running jobs after the coordinator's own restart, until agents have dialled again.
  absl::Duration recovery_grace = absl::Seconds(15);
  // What tokens of gangs are made from. The same over restarts, or a gang that is being placed then
  // fails and is placed again.
  std::string gang_secret;
};

// Ranks on all workers of the job's attempt.
int RanksOf(const JobRecord& record);

// What the job asks of the scheduler.
scheduler::Request SchedulerRequest(const JobRecord& record);

// The job's current attempt, by name.
lemo::v1::AttemptId IdOf(const JobRecord& record);

// What a STARTING or RUNNING job has of its devices.
scheduler::Occupant OccupantOf(const lemo::v1::Job& job);

// Whether the contract may be cut now: the job allows it, its ranks have said in this attempt what
// they can go on with, and their last step was computed with what the job has now.
bool CanBeCut(const lemo::v1::Job& job);

class Core {
 public:
  Core(const CoreOptions& options, const scheduler::Scheduler* scheduler);  // not owned

  // What the store holds: all jobs that have not ended, and cordoned workers. Before the first
  // Step. Answers effects as Step does: validations begin anew, running jobs get their grace.
  std::vector<Effect> Recover(std::vector<JobRecord> jobs, const std::set<std::string>& cordoned,
                              absl::Time now);

  struct Outcome {
    // Of a request of the API: NOT_FOUND, or FAILED_PRECONDITION with the state that forbids it.
    // A repeated cancel, pause or resume is OK and changes nothing.
    absl::Status status;
    std::vector<Effect> effects;
  };
  Outcome Step(const Event& event, absl::Time now);

  // When Step(Tick) is due at the latest; InfiniteFuture when nothing waits for time. At most a
  // heartbeat ahead while any worker is known.
  absl::Time NextWake() const;

  // nullptr when the job has ended or never was.
  const JobRecord* Find(const std::string& job) const;
  // Jobs that have not ended, by name.
  const std::map<std::string, JobRecord>& Jobs() const { return jobs_; }
  // Jobs that wait for a placement, in order.
  std::vector<const JobRecord*> Queue() const;
  std::vector<lemo::v1::Worker> Workers() const;
  // What those that are known have said last of themselves.
  std::vector<const lemo::v1::Hello*> Hellos() const;
  // What runs and waits, and for how long it is expected to.
  scheduler::Outlook MakeOutlook() const;
  // Names of files that jobs need which have not ended.
  bool UsesFile(const std::string& file) const;

 private:
  struct WorkerEntry {
    lemo::v1::Hello hello;  // its last; only the name, when it has not dialled since Recover
    int64_t session = 0;    // 0: not connected
    absl::Time lease_end = absl::InfinitePast();
    bool lost = false;           // lease and margin are over; it has no jobs
    bool draining = false;       // by an operator, who cordoned it as well
    bool leaving = false;        // its agent said so; until the next Hello
    std::set<std::string> jobs;  // STARTING or RUNNING on it
  };
  // An attempt of which nothing will come any more, until nothing of it is left anywhere. Memory
  // only: who has said the end repeats it to the next coordinator.
  struct Ending {
    lemo::v1::AttemptEnded end;  // the first that was said, or that a worker was lost
    std::string worker;          // of that
    std::set<std::string> over;  // workers that have nothing of it left
    std::set<std::string> told;  // those that said so, and wait to hear that it was stored
    bool charged = false;        // the lead told how long it ran
  };
  // A job that this step has changed, and the events that came of it.
  struct Change {
    std::string job;
    std::vector<lemo::v1::JobEvent> events;
  };
  using QueueKey = std::tuple<absl::Time, int64_t, std::string>;

  // core.cc: time, and what a step leaves behind.
  void Advance(absl::Time now);
  absl::Time Wake() const;  // on the core's clock
  std::vector<Effect> Flush();

  // jobs.cc: requests, and the only places where a job changes.
  absl::Status On(const Submitted& event);
  absl::Status On(const Validated& event);
  absl::Status On(const CancelRequested& event);
  absl::Status On(const PauseRequested& event);
  absl::Status On(const ResumeRequested& event);
  std::vector<lemo::v1::JobEvent>& Touch(const JobRecord& record);
  lemo::v1::JobEvent& AddEvent(JobRecord& record);
  // Changes the state and every index that depends on it.
  void Enter(JobRecord& record, lemo::v1::Job::State state, lemo::v1::Job::ReasonCode code,
             const std::string& reason, const lemo::v1::Failure* failure = nullptr);
  // Changes the reason within a state. An event only when the code changes.
  void Explain(JobRecord& record, lemo::v1::Job::ReasonCode code, const std::string& reason);
  void Enqueue(JobRecord& record);
  void Cancel(JobRecord& record);
  void Pause(JobRecord& record);
  void Fail(JobRecord& record, const lemo::v1::Failure& failure);

  // attempts.cc: what agents say of attempts.
  void Start(JobRecord& record, const scheduler::Placement& placement);
  // To one of its workers.
  void SendAssignment(const JobRecord& record, const std::string& worker);
  std::string GangToken(const lemo::v1::AttemptId& id) const;
  // Tells the agents of a STARTING or RUNNING job to end it, as its stop request or a drain
  // demands: a gang's lead lets the ranks checkpoint, on all nodes; a cancel is told to everybody.
  void SendStop(const JobRecord& record);
  void SendKill(const JobRecord& record, const std::string& worker);
  // The attempt that `worker` has a part in; nullptr when it is not a current one.
  JobRecord* Current(const lemo::v1::AttemptId& id, const std::string& worker);
  // The attempt that `worker` leads, which alone tells what the run does.
  JobRecord* CurrentOfLead(const lemo::v1::AttemptId& id, const std::string& worker);
  void OnStarted(const std::string& worker, const lemo::v1::AttemptStarted& started);
  void OnEvents(const std::string& worker, const lemo::v1::AttemptEvents& events);
  void OnEnded(const std::string& worker, const lemo::v1::AttemptEnded& ended);
  void OnLog(const std::string& worker, const lemo::v1::AttemptLog& log);
  void OnCheckpoint(const std::string& worker, const lemo::v1::AttemptCheckpoint& message);
  // The job's checkpoint becomes `checkpoint`, and the former one's content is dropped.
  void ReplaceCheckpoint(JobRecord& record, const lemo::v1::JobCheckpoint* checkpoint);
  void BeginRunning(JobRecord& record);
  // Nothing of the attempt is left on `worker`, which says so itself or (EndLost) cannot. The first
  // of a gang ends it everywhere; when all are over the attempt's end counts.
  void EndOn(JobRecord& record, const std::string& worker, const lemo::v1::AttemptEnded& ended);
  void EndLost(JobRecord& record, const std::string& worker, const std::string& message);
  void OverOn(JobRecord& record, const std::string& worker, const lemo::v1::AttemptEnded& ended);
  void ConcludeIfOver(JobRecord& record);
  // `worker` is whose word counts.
  void End(JobRecord& record, const lemo::v1::AttemptEnded& ended, const std::string& worker);
  // The attempt ended without a word of its agent's on how long it ran: all of the time counts
  // against limits.run_seconds.
  void ChargeLostTime(JobRecord& record);
  // The attempt is over and nothing of it runs; not by its own fault.
  void Restart(JobRecord& record, const lemo::v1::Failure& failure);
  void Restart(JobRecord& record, const std::string& message);
  // The attempt is over as asked, or for a drain.
  void Stopped(JobRecord& record);

  // workers.cc: sessions, leases, cordons.
  absl::Status On(const AgentConnected& event);
  absl::Status On(const AgentSaid& event);
  absl::Status On(const AgentDisconnected& event);
  absl::Status On(const CordonRequested& event);
  absl::Status On(const DrainRequested& event);
  absl::Status On(const Tick& event);
  void SendTo(const std::string& worker, lemo::v1::CoordinatorMessage message);
  void CloseSession(int64_t session, absl::Status reason);
  void Attach(const std::string& name, WorkerEntry& worker);
  void Renew(WorkerEntry& worker);
  void StopJobsOf(const WorkerEntry& worker);
  void CheckLeases();
  void Lose(const std::string& name, WorkerEntry& worker);
  bool AcceptsJobs(const std::string& name, const WorkerEntry& worker) const;

  // placement.cc
  void RequestPlacement();
  void Place();
  // Those that are connected or expected back, with what their jobs have of them unless `idle`.
  void AddWorkers(bool idle, std::vector<scheduler::Worker>* workers,
                  std::vector<scheduler::Worker>* returning) const;

  // allotments.cc
  // Whether a job has less than its contract.
  bool HasCuts() const;
  // Has jobs that allow it give up memory for the first of these that waits for a device; or, when
  // none does, gives back what was taken. Which job waits for room that others make, and a sentence
  // that says whose; empty for none.
  std::pair<std::string, std::string> MakeRoom(const std::vector<scheduler::Waiting>& waiting);
  // Amends the job's contract for this attempt: what each rank may have. `for_job` waits for a cut.
  void Allot(JobRecord& record, int64_t memory_bytes, const std::string& for_job);
  // What the ranks of a job with an allotment may have, to its lead.
  void SendBudget(const JobRecord& record);
  // A step has told its memory, and `job.progress` has it. `could_be_cut`: CanBeCut before that.
  void OnMemory(JobRecord& record, bool could_be_cut);

  CoreOptions options_;
  const scheduler::Scheduler* scheduler_;

  std::map<std::string, JobRecord> jobs_;  // that have not ended
  std::set<QueueKey> queue_;               // of jobs_ that are QUEUED
  std::map<std::string, WorkerEntry> workers_;
  std::map<std::string, Ending> endings_;    // by job
  std::map<int64_t, std::string> sessions_;  // open ones, to their worker
  std::set<std::string> cordoned_;           // also of workers that are not here
  int64_t last_number_ = 0;

  absl::Time now_ = absl::InfinitePast();    // as told
  absl::Time clock_ = absl::InfinitePast();  // the core's own
  // When leases are looked at next, and when jobs are placed next; InfiniteFuture: no need.
  absl::Time lease_check_at_ = absl::InfiniteFuture();
  absl::Time placement_at_ = absl::InfiniteFuture();
  // Not to be placed before: long queues are looked at less often.
  absl::Time placement_from_ = absl::InfinitePast();

  // Of the step at hand.
  std::vector<Change> changes_;
  std::unordered_map<std::string, size_t> change_of_;
  std::vector<Effect> effects_;
};

}  // namespace lemo::coordinator
