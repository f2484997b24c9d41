#include "worker/agent/agent.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/shared_files.h"
#include "common/status_macros.h"
#include "worker/agent/calibration.h"
#include "worker/agent/uplink.h"

namespace lemo::agent {
namespace {

namespace fs = std::filesystem;
using lemo::v1::AgentMessage;
using lemo::v1::CoordinatorMessage;

constexpr auto kLeftoverPatience = std::chrono::seconds(20);
constexpr auto kWelcomePatience = std::chrono::seconds(10);
constexpr auto kStopPatience = std::chrono::seconds(120);
constexpr auto kDrainPatience = std::chrono::seconds(60);
// Before kDrainPatience is over, so that the ends of killed gangs can still be told.
constexpr auto kDrainStopPatience = std::chrono::seconds(50);
constexpr auto kSweepPause = std::chrono::minutes(1);
constexpr auto kFileAge = std::chrono::hours(24 * 7);
constexpr double kBackoffLeast = 0.2, kBackoffMost = 5;
constexpr int kMessagesPerTurn = 256;

void Log(const std::string& text) { std::cerr << "lemo-worker: " << text << std::endl; }

}  // namespace

absl::StatusOr<std::unique_ptr<Agent>> Agent::Create(AgentOptions options, Watchdog* watchdog,
                                                     Metrics* metrics) {
  LEMO_ASSIGN_OR_RETURN(Home home, Home::Open(options.directory));
  std::unique_ptr<Agent> agent(new Agent(std::move(options), std::move(home), watchdog, metrics));
  agent->Recover();
  if (!agent->options_.listen.empty()) {
    LEMO_ASSIGN_OR_RETURN(agent->node_server_,
                          NodeServer::Start(agent->options_.listen, &agent->parts_));
  }
  return agent;
}

Agent::Agent(AgentOptions options, Home home, Watchdog* watchdog, Metrics* metrics)
    : options_(std::move(options)),
      home_(std::move(home)),
      watchdog_(watchdog),
      metrics_(metrics),
      devices_(ListDevices(options_.cpu_devices, options_.cuda,
                           options_.memory_bytes > 0 ? options_.memory_bytes : HostMemoryBytes(),
                           options_.cuda_bases)),
      host_memory_bytes_(HostMemoryBytes()),
      channel_(Dial(options_.coordinator)),
      stub_(lemo::v1::WorkerService::NewStub(channel_)),
      jobs_(lemo::v1::JobService::NewStub(channel_)),
      cache_(home_.files(), channel_),
      models_(home_.models(), channel_),
      sweeper_(channel_, &waker_),
      random_(std::random_device{}()) {}

Agent::~Agent() = default;

AttemptContext Agent::Context() {
  return {&options_, &devices_, &cache_,  &models_, stub_.get(),   jobs_.get(),
          &waker_,   watchdog_, metrics_, &parts_,  home_.worker()};
}

lemo::v1::NodeEndpoint Agent::Endpoint() const {
  lemo::v1::NodeEndpoint endpoint;
  if (node_server_ == nullptr) return endpoint;
  const std::string& said = options_.address.empty() ? options_.listen : options_.address;
  // A port of its own counts; that of --listen may be 0.
  const size_t colon = said.rfind(':');
  const bool has_port = !options_.address.empty() && colon != std::string::npos &&
                        said.find(']', colon) == std::string::npos;
  endpoint.set_address(has_port
                           ? said
                           : absl::StrCat(options_.address.empty() ? said.substr(0, colon) : said,
                                          ":", node_server_->port()));
  endpoint.set_interfaces(options_.mpi_interfaces);
  endpoint.set_first_port(options_.mpi_first_port);
  endpoint.set_last_port(options_.mpi_last_port);
  return endpoint;
}

void Agent::Recover() {
  // All leftovers were asked to end at the same time, when the earlier agent died.
  const Instant deadline = BootClock::now() + kLeftoverPatience;
  std::error_code error;
  for (fs::directory_iterator entry(home_.jobs(), error), end; !error && entry != end;
       entry.increment(error)) {
    const auto patience =
        std::max<BootClock::duration>(deadline - BootClock::now(), BootClock::duration::zero());
    auto attempt = Attempt::Recover(Context(), entry->path(), patience);
    if (!attempt.ok()) {
      if (!absl::IsNotFound(attempt.status())) Log(std::string(attempt.status().message()));
      continue;
    }
    const std::string job = (*attempt)->id().job();
    if (home_.JobDirectory(job) != entry->path()) continue;
    attempts_[job] = *std::move(attempt);
  }
  // No rank reads from the cache now.
  cache_.RemoveUnused(kFileAge);
  SweepBases();
}

void Agent::Drain() {
  int none = 0;
  stop_requests_.compare_exchange_strong(none, 1);
  waker_.Wake();
}

void Agent::Kill() {
  stop_requests_ = 2;
  waker_.Wake();
}

void Agent::Run() {
  for (;;) {
    const Instant now = BootClock::now();
    if (stop_requests_ == 2) return;
    if (stop_requests_ == 1 && !draining_) {
      Log("draining: the ranks are asked to checkpoint and end");
      draining_ = true;
      drain_until_ = now + kDrainPatience;
      next_.clear();
      for (auto& [job, attempt] : attempts_) attempt->Stop(now, kDrainStopPatience);
    }
    Instant next = KeepLease(now);
    next = std::min(next, PumpSession(now));
    next = std::min(next, AdvanceAttempts(now));
    next = std::min(next, Sweep(now));
    if (draining_) {
      if (DrainIsOver(now)) return;
      next = std::min(next, drain_until_);
    }
    PublishStatus();
    Wait(next);
  }
}

bool Agent::DrainIsOver(Instant now) {
  if (now >= drain_until_) {
    Log("left before the coordinator knew of every end; the next agent here will tell it");
    return true;
  }
  // With no coordinator to tell, what is on disk has to do.
  return std::all_of(attempts_.begin(), attempts_.end(),
                     [this](const auto& entry) { return entry.second->ended() && !welcomed_; });
}

Attempt* Agent::Find(const lemo::v1::AttemptId& id) {
  const auto found = attempts_.find(id.job());
  if (found == attempts_.end() || found->second->id().attempt() != id.attempt()) return nullptr;
  return found->second.get();
}

void Agent::Connect() {
  lemo::v1::Hello hello;
  hello.set_worker(home_.worker());
  hello.set_host(options_.host);
  hello.set_version(options_.version);
  hello.set_host_memory_bytes(host_memory_bytes_);
  if (node_server_ != nullptr) *hello.mutable_endpoint() = Endpoint();
  for (const LocalDevice& device : devices_) *hello.add_devices() = device.info;
  // Looked for anew each time, so that a new model is known after a short break of the stream, and
  // new rates likewise. Without them times are those of the coordinator's machine.
  *hello.mutable_rates() = KnownRates().rates();
  for (std::string& path : FindModels(options_.model_roots)) {
    hello.add_model_paths(std::move(path));
  }
  for (const auto& [job, attempt] : attempts_) {
    if (attempt->forgotten()) continue;
    lemo::v1::AttemptReport* report = hello.add_attempts();
    *report->mutable_id() = attempt->id();
    report->set_running(!attempt->ended());
  }
  session_ = std::make_unique<Session>(options_.coordinator, hello, &waker_);
}

void Agent::Disconnect(Instant now, const std::string& why) {
  // Every lost stream is told, but of a coordinator that stays away only the first try.
  if (welcomed_ || failed_dials_ == 0) {
    Log(absl::StrCat("no connection to ", options_.coordinator, ": ", why, "; trying again"));
  }
  session_ = nullptr;
  welcomed_ = false;
  heartbeat_due_ = kNever;
  const double most =
      std::min(kBackoffMost, kBackoffLeast * std::exp2(std::min(failed_dials_, 10)));
  ++failed_dials_;
  // Many agents that lost one coordinator must not come back as one.
  dial_due_ = now + FromSeconds(std::uniform_real_distribution<double>(most / 2, most)(random_));
}

Instant Agent::PumpSession(Instant now) {
  if (session_ == nullptr) {
    if (now < dial_due_) return dial_due_;
    Connect();
  }
  int received = 0;
  while (received < kMessagesPerTurn) {
    const std::optional<CoordinatorMessage> message = session_->Receive();
    if (!message) break;
    ++received;
    On(*message, now);
    if (session_ == nullptr) return dial_due_;
  }
  if (received == kMessagesPerTurn) return now;
  if (const auto status = session_->ended()) {
    Disconnect(now, status->ok() ? "the coordinator ended the stream" : status->error_message());
    return dial_due_;
  }
  if (!welcomed_) {
    const Instant deadline = session_->opened() + kWelcomePatience;
    if (now < deadline) return deadline;
    Disconnect(now, "no answer");
    return dial_due_;
  }
  // A stream that says nothing is taken for dead while there is time left in the lease for another.
  const Instant silent =
      lease_.renewed() + std::max<BootClock::duration>(lease_.length() / 2, heartbeat_ * 2);
  if (now >= silent) {
    Disconnect(now, "it does not answer heartbeats");
    return dial_due_;
  }
  if (now >= heartbeat_due_) {
    AgentMessage message;
    message.mutable_heartbeat()->set_number(++heartbeat_number_);
    lease_.Sent(heartbeat_number_, now);
    session_->Send(std::move(message));
    heartbeat_due_ = now + heartbeat_;
  }
  if (draining_ && !drain_sent_) {
    AgentMessage message;
    message.mutable_drain();
    drain_sent_ = session_->Send(std::move(message));
  }
  return std::min(silent, heartbeat_due_);
}

void Agent::On(const CoordinatorMessage& message, Instant now) {
  if (message.has_welcome() == welcomed_) {
    Disconnect(now, welcomed_ ? "a second welcome" : "its first message is no welcome");
    return;
  }
  switch (message.message_case()) {
    case CoordinatorMessage::kWelcome:
      if (!(message.welcome().lease_seconds() > 0 && message.welcome().heartbeat_seconds() > 0)) {
        Disconnect(now, "its welcome has no lease");
        return;
      }
      OnWelcome(message.welcome());
      break;
    case CoordinatorMessage::kLease:
      lease_.Renewed(message.lease().number());
      break;
    case CoordinatorMessage::kAssign:
      OnAssign(message.assign());
      break;
    case CoordinatorMessage::kSignal:
      if (Attempt* attempt = Find(message.signal().id()); attempt != nullptr) {
        if (message.signal().signal() == lemo::v1::AttemptSignal::KILL) {
          attempt->Kill();
        } else {
          attempt->Stop(now, kStopPatience);
        }
      }
      break;
    case CoordinatorMessage::kAcknowledged:
      if (Attempt* attempt = Find(message.acknowledged().id()); attempt != nullptr) {
        attempt->outbox().Acknowledged(message.acknowledged().through_sequence());
      }
      break;
    case CoordinatorMessage::kBudget:
      if (Attempt* attempt = Find(message.budget().id()); attempt != nullptr) {
        attempt->SetBudget(message.budget().bytes());
      }
      break;
    case CoordinatorMessage::kForgotten:
      if (Attempt* attempt = Find(message.forgotten().id()); attempt != nullptr) {
        attempt->Forget();
      }
      break;
    case CoordinatorMessage::MESSAGE_NOT_SET:
      break;  // of a newer coordinator
  }
}

void Agent::OnWelcome(const lemo::v1::Welcome& welcome) {
  welcomed_ = true;
  failed_dials_ = 0;
  drain_sent_ = false;
  lease_.Grant(session_->opened(), FromSeconds(welcome.lease_seconds()));
  fenced_ = false;
  heartbeat_ = FromSeconds(welcome.heartbeat_seconds());
  heartbeat_due_ = BootClock::now() + heartbeat_;
  sweep_due_ = Instant{};
  next_.clear();  // what is still wanted is assigned again
  Log(absl::StrCat("connected to ", options_.coordinator, " as ", home_.worker()));
  std::map<std::string, const lemo::v1::EventsAcknowledged*> current;
  for (const lemo::v1::EventsAcknowledged& attempt : welcome.attempts()) {
    current[absl::StrCat(attempt.id().job(), " ", attempt.id().attempt())] = &attempt;
  }
  for (auto& [job, attempt] : attempts_) {
    const auto found = current.find(absl::StrCat(job, " ", attempt->id().attempt()));
    if (found == current.end()) {
      attempt->Forget();
    } else {
      attempt->outbox().Connected(found->second->through_sequence());
    }
  }
}

void Agent::SendEnd(const lemo::v1::AttemptId& id, lemo::v1::AttemptEnded ended) {
  AgentMessage message;
  *message.mutable_ended() = std::move(ended);
  *message.mutable_ended()->mutable_id() = id;
  if (session_ != nullptr) session_->Send(std::move(message));
}

void Agent::OnAssign(const lemo::v1::Assignment& assignment) {
  const lemo::v1::AttemptId& id = assignment.id();
  const auto directory = home_.JobDirectory(id.job());
  if (!directory || id.attempt() < 1) {
    Log(absl::StrCat("an assignment of \"", id.job(), "\" is not understood"));
    return;
  }
  if (draining_) {
    lemo::v1::AttemptEnded ended;
    ended.set_outcome(lemo::v1::AttemptEnded::STOPPED);
    SendEnd(id, std::move(ended));
    return;
  }
  if (const auto found = attempts_.find(id.job()); found != attempts_.end()) {
    if (found->second->id().attempt() >= id.attempt()) return;  // said twice
    found->second->Forget();
    next_[id.job()] = assignment;
    return;
  }
  auto attempt = Attempt::Accept(Context(), assignment, *directory);
  if (!attempt.ok()) {
    lemo::v1::AttemptEnded ended;
    ended.set_outcome(lemo::v1::AttemptEnded::FAILED);
    *ended.mutable_failure() = SystemError(std::string(attempt.status().message()));
    SendEnd(id, std::move(ended));
    return;
  }
  attempts_[id.job()] = *std::move(attempt);
}

Instant Agent::KeepLease(Instant now) {
  const Instant stop = lease_.StopAt();
  // The agent kills first, if it can.
  if (watchdog_ != nullptr && lease_.granted()) {
    watchdog_->SetDeadline(lease_.KillAt() + lease_.length() / 20);
  }
  if (now < stop) {
    fenced_ = false;
    return stop;
  }
  if (!std::exchange(fenced_, true)) {
    for (auto& [job, attempt] : attempts_) attempt->Fence(lease_.KillAt());
  }
  return kNever;
}

Instant Agent::AdvanceAttempts(Instant now) {
  Instant next = kNever;
  for (auto entry = attempts_.begin(); entry != attempts_.end();) {
    Attempt& attempt = *entry->second;
    next = std::min(next, attempt.Advance(now));
    if (attempt.forgotten()) {
      attempt.Clean();
      entry = attempts_.erase(entry);
      sweep_due_ = std::min(sweep_due_, now + std::chrono::seconds(1));
      SweepBases();
      continue;
    }
    if (welcomed_) next = std::min(next, attempt.outbox().Report(*session_, now));
    ++entry;
  }
  for (auto entry = next_.begin(); entry != next_.end();) {
    if (attempts_.contains(entry->first)) {
      ++entry;
      continue;
    }
    const lemo::v1::Assignment assignment = std::move(entry->second);
    entry = next_.erase(entry);
    OnAssign(assignment);
  }
  return next;
}

void Agent::SweepBases() {
  bases_bytes_ = RemoveUnusedSharedFiles(options_.bases, options_.idle_bases_bytes);
}

// Directories of jobs that are not here now stay until their jobs have ended.
Instant Agent::Sweep(Instant now) {
  for (const std::string& job : sweeper_.TakeEnded()) {
    const auto directory = home_.JobDirectory(job);
    if (!directory || attempts_.contains(job)) continue;
    std::error_code ignored;
    fs::remove_all(*directory, ignored);
  }
  if (!welcomed_) return kNever;
  if (now < sweep_due_) return sweep_due_;
  sweep_due_ = now + kSweepPause;
  SweepBases();
  std::vector<std::string> jobs;
  std::error_code error;
  for (fs::directory_iterator entry(home_.jobs(), error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string job = "jobs/" + entry->path().filename().string();
    if (home_.JobDirectory(job) && !attempts_.contains(job)) jobs.push_back(job);
  }
  sweeper_.Ask(std::move(jobs));
  return sweep_due_;
}

void Agent::PublishStatus() {
  if (metrics_ == nullptr) return;
  AgentStatus status;
  status.connected = welcomed_;
  status.draining = draining_;
  if (lease_.granted()) {
    status.lease_renewed = lease_.renewed();
    status.lease = lease_.length();
  }
  for (const LocalDevice& device : devices_) status.devices.push_back(device.info);
  status.host_memory_bytes = host_memory_bytes_;
  status.bases_bytes = bases_bytes_;
  for (const auto& [job, attempt] : attempts_) status.attempts.push_back(attempt->Status());
  metrics_->Publish(std::move(status));
}

void Agent::Wait(Instant until) {
  std::vector<pollfd> fds = {{.fd = waker_.fd(), .events = POLLIN}};
  for (const auto& [job, attempt] : attempts_) attempt->AddPollFds(&fds);
  const auto left = std::clamp<BootClock::duration>(
      until == kNever ? std::chrono::hours(1) : until - BootClock::now(),
      BootClock::duration::zero(), std::chrono::hours(1));
  const auto milliseconds = std::chrono::ceil<std::chrono::milliseconds>(left).count();
  ::poll(fds.data(), fds.size(), static_cast<int>(milliseconds));
  waker_.Clear();
}

}  // namespace lemo::agent
