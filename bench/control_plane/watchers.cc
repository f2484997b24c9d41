#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/control_plane/fake_agents.h"
#include "bench/control_plane/filled_store.h"
#include "bench/control_plane/measures.h"
#include "common/status_macros.h"

namespace lemo::bench {
namespace {

constexpr int kAgents = 10, kWatchersAChannel = 50;
constexpr double kEventsPerSecond = 1000;

double Now() { return absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()); }

// One WatchJob call on gRPC's own threads. Reads until it is cancelled.
class Watch final : public grpc::ClientReadReactor<lemo::v1::WatchJobResponse> {
 public:
  Watch(lemo::v1::JobService::Stub* stub, const std::string& job) {
    request_.set_name(job);
    stub->async()->WatchJob(&context_, &request_, this);
    StartRead(&response_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (response_.has_event()) {
      const lemo::v1::JobEvent& event = response_.event();
      if (event.sequence() != ++sequence_) in_order_ = false;
      if (event.run().has_step()) {
        lags_.push_back({event.run().unix_seconds(), Now() - event.run().unix_seconds()});
        received_ = static_cast<int64_t>(lags_.size());
      } else {
        started_ = started_ || event.state().to() == lemo::v1::Job::RUNNING;
      }
    }
    StartRead(&response_);
  }

  void OnDone(const grpc::Status&) override {
    const std::lock_guard lock(mutex_);
    done_ = true;
    changed_.notify_all();
  }

  void Cancel() {
    context_.TryCancel();
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return done_; });
  }

  int64_t received() const { return received_; }
  bool started() const { return started_; }
  // After Cancel: when each event was sent, and its lag.
  const std::vector<std::pair<double, double>>& lags() const { return lags_; }
  bool in_order() const { return in_order_; }

 private:
  grpc::ClientContext context_;
  lemo::v1::WatchJobRequest request_;
  lemo::v1::WatchJobResponse response_;
  int64_t sequence_ = 0;
  bool in_order_ = true;
  std::vector<std::pair<double, double>> lags_;
  std::atomic<int64_t> received_ = 0;
  std::atomic<bool> started_ = false;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
};

template <typename Condition>
absl::Status WaitUntil(const std::string& what, Condition condition) {
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (!condition()) {
    if (absl::Now() > deadline) return absl::DeadlineExceededError(what);
    absl::SleepFor(absl::Milliseconds(5));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<Figure>> MeasureWatchers(const Settings& settings) {
  const int jobs = 100;
  const int watchers = settings.quick ? 200 : 1000;
  const std::filesystem::path directory = settings.scratch / "watchers";
  LEMO_RETURN_IF_ERROR(AddQueuedJobs(directory.string(), jobs));
  LEMO_ASSIGN_OR_RETURN(const std::unique_ptr<Service> service,
                        Service::Start(settings, directory));
  FakeAgents agents(service->address(), kAgents, jobs / kAgents);
  LEMO_ASSIGN_OR_RETURN(const std::vector<std::string> names, agents.TakeJobs(jobs));

  std::vector<std::unique_ptr<lemo::v1::JobService::Stub>> stubs;
  std::vector<std::unique_ptr<Watch>> watches;
  for (int i = 0; i < watchers; ++i) {
    if (i % kWatchersAChannel == 0) {
      stubs.push_back(lemo::v1::JobService::NewStub(Dial(service->address())));
    }
    watches.push_back(std::make_unique<Watch>(stubs.back().get(), names[i % jobs]));
  }
  const auto all = [&watches](auto condition) {
    return std::all_of(watches.begin(), watches.end(),
                       [&condition](const auto& watch) { return condition(*watch); });
  };
  const auto cancel = [&watches] {
    for (const auto& watch : watches) watch->Cancel();
  };
  absl::Status status = WaitUntil("watchers that see their job run",
                                  [&] { return all([](const Watch& w) { return w.started(); }); });
  const absl::Duration warm_up = absl::Seconds(settings.quick ? 0.5 : 3);
  const absl::Duration duration = absl::Seconds(settings.quick ? 2 : 20);
  const double from = Now() + absl::ToDoubleSeconds(warm_up);
  const double cpu_before = CpuSeconds(service->pid());
  absl::StatusOr<int64_t> sent = 0;
  if (status.ok()) sent = agents.TellSteps(kEventsPerSecond, warm_up + duration);
  if (sent.ok()) {
    status = WaitUntil("watchers that have every event", [&] {
      return all([&](const Watch& w) { return w.received() >= *sent / jobs; });
    });
  }
  const double cpu = CpuSeconds(service->pid()) - cpu_before;
  cancel();
  LEMO_RETURN_IF_ERROR(sent.status());
  LEMO_RETURN_IF_ERROR(status);

  std::vector<double> lags;
  for (const auto& watch : watches) {
    if (!watch->in_order()) return absl::InternalError("a watcher saw events with a gap");
    for (const auto& [at, lag] : watch->lags()) {
      if (at >= from) lags.push_back(lag);
    }
  }
  const Samples samples(std::move(lags));
  const double seconds = absl::ToDoubleSeconds(warm_up + duration);
  const double rate = static_cast<double>(*sent) / seconds;
  Figure figure{
      .what = absl::StrCat("lag p99 from agent to watcher, ", watchers, " watchers on ", jobs,
                           " jobs at ", static_cast<int>(std::lround(rate)), " events/s"),
      .unit = "s",
      .measured = samples.Quantile(0.99),
      .goal = 1,
      .bound = Figure::Bound::kAtMost,
      .remark = absl::StrCat(samples.Summary(1e-3), " (ms); the coordinator took ",
                             static_cast<int>(std::lround(100 * cpu / seconds)),
                             " % of a core; every watcher had every event, in order"),
      .detail = samples.ToJson()};
  figure.detail["events_sent_per_second"] = rate;
  service->Stop();
  return std::vector<Figure>{std::move(figure)};
}

}  // namespace lemo::bench
