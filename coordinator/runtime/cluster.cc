#include "coordinator/runtime/cluster.h"

#include <algorithm>
#include <future>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "coordinator/core/contract.h"
#include "coordinator/core/planned_devices.h"

namespace lemo::coordinator {
namespace {

// Events that wait, and that are committed together at most.
constexpr size_t kQueueLimit = 20'000;
constexpr size_t kBatch = 512;
// After a failed commit, before the store is tried again.
constexpr absl::Duration kStoreRetry = absl::Seconds(1);

}  // namespace

Cluster::Cluster(const CoreOptions& options, Store* store, WatchHub* hub, Services* services,
                 CommitObserver* observer)
    : options_(options), store_(store), hub_(hub), services_(services), observer_(observer) {}

absl::StatusOr<std::unique_ptr<Cluster>> Cluster::Start(const CoreOptions& options, Store* store,
                                                        WatchHub* hub, Services* services,
                                                        CommitObserver* observer) {
  std::unique_ptr<Cluster> cluster(new Cluster(options, store, hub, services, observer));
  LEMO_RETURN_IF_ERROR(cluster->Recover());
  cluster->loop_ = std::thread([cluster = cluster.get()] { cluster->Loop(); });
  return cluster;
}

Cluster::~Cluster() { Stop(); }

absl::Status Cluster::Recover() {
  LEMO_ASSIGN_OR_RETURN(std::vector<JobRecord> jobs, store_->ActiveJobs());
  LEMO_ASSIGN_OR_RETURN(const std::set<std::string> cordoned, store_->CordonedWorkers());
  LEMO_ASSIGN_OR_RETURN(last_number_, store_->LastNumber());
  auto core = std::make_unique<Core>(options_, &scheduler_);
  const std::vector<Effect> effects = core->Recover(std::move(jobs), cordoned, absl::Now());
  LEMO_RETURN_IF_ERROR(Commit(effects));
  {
    const std::lock_guard lock(core_mutex_);
    core_ = std::move(core);
  }
  CarryOut(effects);
  return absl::OkStatus();
}

absl::Status Cluster::Commit(const std::vector<Effect>& effects) {
  const absl::Time begin = absl::Now();
  const absl::Status stored = store_->Apply(effects);
  if (observer_ != nullptr) observer_->OnCommit(effects, absl::Now() - begin, stored);
  return stored;
}

void Cluster::Stop() {
  {
    const std::lock_guard lock(queue_mutex_);
    stopping_ = true;
  }
  queue_changed_.notify_all();
  if (loop_.joinable()) loop_.join();
  CloseAllSessions(absl::UnavailableError("the coordinator is stopping"));
}

void Cluster::Enqueue(Item item) {
  absl::Status refused;
  {
    const std::lock_guard lock(queue_mutex_);
    if (stopping_) {
      refused = absl::UnavailableError("the coordinator is stopping");
    } else if (queue_.size() >= kQueueLimit) {
      refused = absl::ResourceExhaustedError("too many requests wait; try again");
    } else {
      queue_.push_back(std::move(item));
    }
  }
  if (refused.ok()) {
    queue_changed_.notify_one();
  } else if (item.done) {
    item.done(refused);
  }
}

void Cluster::Post(Event event, Done done) { Enqueue({std::move(event), std::move(done)}); }

absl::Status Cluster::Do(Event event) {
  std::promise<absl::Status> promise;
  Post(std::move(event), [&promise](const absl::Status& status) { promise.set_value(status); });
  return promise.get_future().get();
}

absl::StatusOr<lemo::v1::Job> Cluster::Submit(JobRecord record) {
  lemo::v1::Job job;
  std::promise<absl::Status> promise;
  Enqueue({Submitted{std::move(record)},
           [&promise](const absl::Status& status) { promise.set_value(status); }, &job});
  LEMO_RETURN_IF_ERROR(promise.get_future().get());
  return job;
}

int64_t Cluster::OpenSession(std::shared_ptr<AgentLink> link, const lemo::v1::Hello& hello) {
  int64_t session = 0;
  {
    const std::lock_guard lock(sessions_mutex_);
    session = ++last_session_;
    sessions_[session] = std::move(link);
  }
  Post(AgentConnected{session, hello}, [this, session](const absl::Status& status) {
    if (status.ok()) return;
    const std::lock_guard lock(sessions_mutex_);
    if (const auto found = sessions_.find(session); found != sessions_.end()) {
      found->second->Close(status);
    }
  });
  return session;
}

void Cluster::CloseSession(int64_t session) {
  {
    const std::lock_guard lock(sessions_mutex_);
    sessions_.erase(session);
  }
  Post(AgentDisconnected{session});
}

void Cluster::CloseAllSessions(const absl::Status& reason) {
  const std::lock_guard lock(sessions_mutex_);
  for (const auto& [session, link] : sessions_) link->Close(reason);
}

std::vector<Cluster::Item> Cluster::NextItems() {
  absl::Time wake;
  {
    const std::lock_guard lock(core_mutex_);
    wake = core_->NextWake();
  }
  // A clock that is set back must not make a lease wait for ever.
  const absl::Duration wait =
      std::clamp(wake - absl::Now(), absl::ZeroDuration(), absl::Seconds(1));
  std::vector<Item> items;
  std::unique_lock lock(queue_mutex_);
  queue_changed_.wait_for(lock, absl::ToChronoMilliseconds(wait) + std::chrono::milliseconds(1),
                          [this] { return stopping_ || !queue_.empty(); });
  while (!queue_.empty() && items.size() < kBatch) {
    items.push_back(std::move(queue_.front()));
    queue_.pop_front();
  }
  return items;
}

void Cluster::Loop() {
  for (;;) {
    std::vector<Item> items = NextItems();
    if (items.empty()) {
      const std::lock_guard lock(queue_mutex_);
      if (stopping_) return;
    }
    if (broken_) {
      for (const Item& item : items) {
        if (item.done) item.done(absl::UnavailableError("the coordinator is stopping"));
      }
      continue;
    }
    items.push_back({Tick{}, nullptr});  // also when requests never pause
    Process(std::move(items));
  }
}

std::optional<absl::Status> Cluster::AnswerRepeated(const Item& item,
                                                    const std::map<std::string, JobRecord>& fresh) {
  const JobRecord& record = std::get<Submitted>(item.event).record;
  if (record.request_id.empty()) return std::nullopt;
  const auto answer = [&](const std::string& hash, const lemo::v1::Job& job) {
    if (hash != record.request_hash) {
      return absl::AlreadyExistsError(absl::StrCat("request_id ", record.request_id,
                                                   " was used for another job: ", job.name()));
    }
    *item.submitted = job;
    return absl::OkStatus();
  };
  if (const auto found = fresh.find(record.request_id); found != fresh.end()) {
    return answer(found->second.request_hash, found->second.job);
  }
  const auto stored = store_->FindRequest(record.request_id);
  if (!stored.ok()) return stored.status();
  if (!stored->has_value()) return std::nullopt;
  const absl::StatusOr<lemo::v1::Job> job = store_->GetJob((*stored)->job);
  if (!job.ok()) return job.status();
  return answer((*stored)->request_hash, *job);
}

void Cluster::Process(std::vector<Item> items) {
  std::vector<Effect> effects;
  std::vector<absl::Status> statuses;
  std::map<std::string, JobRecord> fresh;  // by request id: submitted in this batch
  for (Item& item : items) {
    if (item.submitted != nullptr) {
      if (const auto answer = AnswerRepeated(item, fresh)) {
        statuses.push_back(*answer);
        continue;
      }
      std::get<Submitted>(item.event).record.number = ++last_number_;
    }
    Core::Outcome outcome;
    {
      const std::lock_guard lock(core_mutex_);
      outcome = core_->Step(item.event, absl::Now());
    }
    if (item.submitted != nullptr && outcome.status.ok()) {
      const JobRecord& record = std::get<Persist>(outcome.effects.front()).record;
      *item.submitted = record.job;
      if (!record.request_id.empty()) fresh[record.request_id] = record;
    }
    statuses.push_back(outcome.status);
    std::move(outcome.effects.begin(), outcome.effects.end(), std::back_inserter(effects));
  }

  const absl::Status stored = Commit(effects);
  for (size_t i = 0; i < items.size(); ++i) {
    if (items[i].done) items[i].done(stored.ok() ? statuses[i] : stored);
  }
  if (stored.ok()) {
    CarryOut(effects);
    return;
  }
  CloseAllSessions(absl::UnavailableError("the store failed: " + std::string(stored.message())));
  while (!Recover().ok()) {
    std::unique_lock lock(queue_mutex_);
    if (queue_changed_.wait_for(lock, absl::ToChronoMilliseconds(kStoreRetry),
                                [this] { return stopping_; })) {
      broken_ = true;
      return;
    }
  }
}

void Cluster::CarryOut(const std::vector<Effect>& effects) {
  for (const Effect& effect : effects) {
    if (const auto* persist = std::get_if<Persist>(&effect)) {
      hub_->Publish(persist->record.job, persist->events);
    } else if (const auto* send = std::get_if<Send>(&effect)) {
      const std::lock_guard lock(sessions_mutex_);
      if (const auto found = sessions_.find(send->session); found != sessions_.end()) {
        found->second->Send(send->message);
      }
    } else if (const auto* close = std::get_if<Close>(&effect)) {
      const std::lock_guard lock(sessions_mutex_);
      if (const auto found = sessions_.find(close->session); found != sessions_.end()) {
        found->second->Close(close->reason);
      }
    } else if (const auto* start = std::get_if<StartValidation>(&effect)) {
      services_->StartValidation(start->record);
    } else if (const auto* stop = std::get_if<StopValidation>(&effect)) {
      services_->StopValidation(stop->job);
    } else if (const auto* log = std::get_if<AppendLog>(&effect)) {
      services_->AppendLog(log->job, log->chunk);
    } else if (const auto* drop = std::get_if<DropContent>(&effect)) {
      services_->DropContent(drop->sha256);
    }
  }
}

std::vector<lemo::v1::Worker> Cluster::Workers() const {
  const std::lock_guard lock(core_mutex_);
  return core_->Workers();
}

std::vector<Cluster::QueueEntry> Cluster::Queue() const {
  const std::lock_guard lock(core_mutex_);
  std::vector<QueueEntry> entries;
  for (const JobRecord* record : core_->Queue()) {
    entries.push_back({record->job, record->queued_time});
  }
  return entries;
}

ClusterState Cluster::State() const {
  ClusterState state;
  {
    const std::lock_guard lock(core_mutex_);
    for (const auto& [name, record] : core_->Jobs()) {
      const lemo::v1::Job& job = record.job;
      ++state.jobs[{job.state(), job.reason_code()}];
      if (job.state() == lemo::v1::Job::QUEUED) {
        state.oldest_queued_time =
            std::min(state.oldest_queued_time.value_or(record.queued_time), record.queued_time);
      }
      if (job.state() == lemo::v1::Job::STARTING || job.state() == lemo::v1::Job::RUNNING) {
        state.placed.push_back({name,
                                job.attempt(),
                                job.restarts(),
                                {job.nodes().begin(), job.nodes().end()},
                                job.progress(),
                                job.contract().memory_bytes(),
                                OccupantOf(job).memory_bytes,
                                job.contract().base_bytes(),
                                job.contract().base()});
      }
    }
    state.workers = core_->Workers();
  }
  {
    const std::lock_guard lock(sessions_mutex_);
    state.agent_streams = sessions_.size();
  }
  const std::lock_guard lock(queue_mutex_);
  state.waiting_events = queue_.size();
  return state;
}

void Cluster::AddTimes(const JobRecord& record, lemo::v1::PlanResult* plan) const {
  scheduler::Outlook outlook;
  {
    const std::lock_guard lock(core_mutex_);
    outlook = core_->MakeOutlook();
  }
  coordinator::AddTimes(scheduler_, outlook, record, absl::Now(), plan);
}

lemo::v1::PlanOptions Cluster::PlannedDevices(const std::string& type) const {
  const std::lock_guard lock(core_mutex_);
  return coordinator::PlannedDevices(core_->Hellos(), type);
}

bool Cluster::UsesFile(const std::string& file) const {
  const std::lock_guard lock(core_mutex_);
  return core_->UsesFile(file);
}

bool Cluster::IsCurrent(const lemo::v1::AttemptId& id) const {
  const std::lock_guard lock(core_mutex_);
  const JobRecord* record = core_->Find(id.job());
  return record != nullptr && record->job.attempt() == id.attempt();
}

}  // namespace lemo::coordinator
