#include <algorithm>
#include <fstream>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "bench/control_plane/measures.h"
#include "common/files.h"
#include "common/message_json.h"
#include "common/status_macros.h"

namespace lemo::bench {
namespace {

// Steps before those that count.
constexpr size_t kWarmUp = 5;

// What one run told, by the clock of this machine.
struct Run {
  absl::Duration to_first_step;  // from the start of the program, or the submission
  std::vector<double> stamps;    // when each step was over, as the rank says
  double agent_share = 0;        // processor time of the agent, of one core
  double coordinator_share = 0;

  // From the end of one step to that of the next: everything that happens in between counts.
  double StepSeconds() const {
    std::vector<double> between;
    for (size_t i = kWarmUp + 1; i < stamps.size(); ++i) {
      between.push_back(stamps[i] - stamps[i - 1]);
    }
    return Samples(std::move(between)).Median();
  }
};

absl::StatusOr<Run> RunAlone(const Settings& settings, int steps,
                             const std::filesystem::path& directory) {
  LEMO_RETURN_IF_ERROR(MakeDirectories(directory));
  const std::string data = (directory / "rows.jsonl").string();
  LEMO_RETURN_IF_ERROR(WriteFileAtomic(data, Rows()));
  lemo::v1::RunSpec spec = RunOverRows(steps);
  spec.mutable_model()->set_path(settings.model.string());
  spec.mutable_data()->mutable_train(0)->set_path(data);
  spec.mutable_output()->set_dir((directory / "out").string());
  spec.set_device("cpu");
  const std::string run_json = (directory / "run.json").string();
  LEMO_RETURN_IF_ERROR(WriteFileAtomic(run_json, MessageToJson(spec, {}).dump(1)));

  Run run;
  const absl::Time begin = absl::Now();
  LEMO_ASSIGN_OR_RETURN(const std::unique_ptr<Process> process,
                        Process::Start({settings.train, run_json, "--events", "json"},
                                       settings.scratch / "train.log"));
  while (const std::optional<std::string> line = process->NextLine()) {
    const auto event = nlohmann::json::parse(*line, nullptr, /*allow_exceptions=*/false);
    if (!event.is_object() || event.value("type", "") != "step") continue;
    if (run.stamps.empty()) run.to_first_step = absl::Now() - begin;
    run.stamps.push_back(event.value("unix_seconds", 0.0));
  }
  if (process->Wait() != 0 || static_cast<int>(run.stamps.size()) != steps) {
    return absl::InternalError(
        absl::StrCat("lemo-train failed: see ", (settings.scratch / "train.log").string()));
  }
  return run;
}

absl::StatusOr<Run> RunAsJob(Service& service, pid_t worker, const lemo::v1::JobSpec& spec) {
  Run run;
  lemo::v1::SubmitJobRequest request;
  *request.mutable_spec() = spec;
  lemo::v1::Job job;
  const absl::Time begin = absl::Now();
  {
    grpc::ClientContext context;
    LEMO_RETURN_IF_ERROR(FromGrpc(service.jobs().SubmitJob(&context, request, &job), "submit"));
  }
  grpc::ClientContext context;
  lemo::v1::WatchJobRequest watch;
  watch.set_name(job.name());
  const auto reader = service.jobs().WatchJob(&context, watch);
  lemo::v1::WatchJobResponse response;
  absl::Time first_step;
  double agent = 0, coordinator = 0;
  while (reader->Read(&response)) {
    if (!response.event().run().has_step()) {
      if (response.event().has_state()) job.set_state(response.event().state().to());
      continue;
    }
    const absl::Time now = absl::Now();
    run.stamps.push_back(response.event().run().unix_seconds());
    if (run.stamps.size() == 1) {
      run.to_first_step = now - begin;
      first_step = now;
      agent = CpuSeconds(worker);
      coordinator = CpuSeconds(service.pid());
    } else if (static_cast<int>(run.stamps.size()) == spec.run().train().steps()) {
      const double seconds = absl::ToDoubleSeconds(now - first_step);
      run.agent_share = (CpuSeconds(worker) - agent) / seconds;
      run.coordinator_share = (CpuSeconds(service.pid()) - coordinator) / seconds;
    }
  }
  LEMO_RETURN_IF_ERROR(FromGrpc(reader->Finish(), "watch"));
  if (job.state() != lemo::v1::Job::SUCCEEDED) {
    return absl::InternalError(absl::StrCat(job.name(), " did not succeed"));
  }
  return run;
}

double Median(const std::vector<double>& values) { return Samples(values).Median(); }

}  // namespace

absl::StatusOr<std::vector<Figure>> MeasureRuns(const Settings& settings) {
  const int rounds = settings.quick ? 1 : 7;
  const int steps = settings.quick ? 8 : 120;
  LEMO_ASSIGN_OR_RETURN(const std::unique_ptr<Service> service,
                        Service::Start(settings, settings.scratch / "runs"));
  LEMO_ASSIGN_OR_RETURN(const std::unique_ptr<Process> worker,
                        service->StartWorker(settings.scratch / "runs-worker"));
  LEMO_ASSIGN_OR_RETURN(const lemo::v1::JobSpec spec, service->PutJob(steps));
  std::vector<double> later, alone_first, job_first, dearer, alone_step, job_step, agent,
      coordinator;
  for (int round = 0; round < rounds; ++round) {
    Run alone, job;
    // Who goes first alternates: what a machine does over minutes hits both alike.
    for (int turn = 0; turn < 2; ++turn) {
      if ((round + turn) % 2 == 0) {
        LEMO_ASSIGN_OR_RETURN(
            alone, RunAlone(settings, steps, settings.scratch / absl::StrCat("alone-", round)));
      } else {
        LEMO_ASSIGN_OR_RETURN(job, RunAsJob(*service, worker->pid(), spec));
      }
    }
    alone_first.push_back(absl::ToDoubleSeconds(alone.to_first_step));
    job_first.push_back(absl::ToDoubleSeconds(job.to_first_step));
    later.push_back(job_first.back() - alone_first.back());
    alone_step.push_back(alone.StepSeconds());
    job_step.push_back(job.StepSeconds());
    dearer.push_back(100 * (job_step.back() / alone_step.back() - 1));
    agent.push_back(100 * job.agent_share);
    coordinator.push_back(100 * job.coordinator_share);
  }
  worker->Stop();
  service->Stop();

  std::vector<Figure> figures;
  figures.push_back(
      {.what = "SubmitJob to first step, over `lemo-train` alone",
       .unit = "s",
       .measured = Median(later),
       .goal = 1.5,
       .bound = Figure::Bound::kAtMost,
       .remark = absl::StrFormat("median of %d rounds (%.2f to %.2f); %.2f against "
                                 "%.2f; its check is a lemo-train process too",
                                 rounds, Samples(later).Quantile(0), Samples(later).Quantile(1),
                                 Median(job_first), Median(alone_first)),
       .detail = {{"job", job_first}, {"alone", alone_first}}});
  figures.push_back(
      {.what = "agent's cost on a running job: step time",
       .unit = "%",
       .measured = Median(dearer),
       .goal = 1,
       .bound = Figure::Bound::kAtMost,
       .remark = absl::StrFormat("median of %d rounds (%.1f to %.1f), %d steps of "
                                 "%.1f ms with and %.1f ms without",
                                 rounds, Samples(dearer).Quantile(0), Samples(dearer).Quantile(1),
                                 steps, 1e3 * Median(job_step), 1e3 * Median(alone_step)),
       .detail = {{"job_step_seconds", job_step}, {"alone_step_seconds", alone_step}}});
  figures.push_back({.what = "... processor time of agent and watchdog, of one core",
                     .unit = "%",
                     .measured = Median(agent),
                     .goal = 1,
                     .bound = Figure::Bound::kAtMost,
                     .remark = absl::StrFormat("while the job makes steps; the coordinator beside "
                                               "it takes %.2f %%",
                                               Median(coordinator)),
                     .detail = {{"agent_percent", agent}, {"coordinator_percent", coordinator}}});
  return figures;
}

}  // namespace lemo::bench
