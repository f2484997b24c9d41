#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "absl/time/clock.h"
#include "coordinator/core/timestamp.h"
#include "coordinator/runtime/metric_families.h"
#include "coordinator/runtime/metrics.h"

namespace lemo::coordinator {
namespace {

using lemo::v1::Failure;
using lemo::v1::Job;
using lemo::v1::Worker;
using ::testing::HasSubstr;
using ::testing::Not;

const absl::Time kNow = absl::FromUnixSeconds(1'000'000);

// A worker with two GPUs, of which a job that runs has one; and three jobs that wait.
ClusterState SmallCluster() {
  ClusterState state;
  state.jobs[{Job::RUNNING, Job::REASON_UNSPECIFIED}] = 1;
  state.jobs[{Job::QUEUED, Job::DEVICES_BUSY}] = 2;
  state.jobs[{Job::QUEUED, Job::BACKING_OFF}] = 1;
  state.oldest_queued_time = kNow - absl::Seconds(40);
  ClusterState::PlacedJob& job = state.placed.emplace_back();
  job.name = "jobs/a";
  job.attempt = 2;
  job.restarts = 1;
  job.nodes.emplace_back().set_worker("workers/w");
  job.nodes.back().add_devices(1);
  job.progress.set_step(5);
  job.progress.set_steps(100);
  job.progress.set_loss(1.25);
  job.progress.set_learning_rate(0.5);
  job.progress.set_grad_norm(3);
  job.contract_bytes = 6000;
  job.allotted_bytes = 5500;
  job.base_bytes = 4000;
  job.base = "b0";
  job.progress.set_step_seconds(0.25);
  job.progress.set_tokens_per_second(512);
  job.progress.set_eval_loss(std::numeric_limits<double>::quiet_NaN());
  job.progress.mutable_peak()->set_saved_activations(4096);
  job.progress.mutable_peak()->set_total(5000);
  *job.progress.mutable_checkpoint_time() = ToTimestamp(kNow - absl::Seconds(30));
  Worker& worker = state.workers.emplace_back();
  worker.set_name("workers/w");
  worker.set_state(Worker::READY);
  worker.set_host_memory_bytes(64'000);
  *worker.mutable_lease_expire_time() = ToTimestamp(kNow + absl::Seconds(7));
  worker.add_jobs("jobs/a");
  for (int i = 0; i < 2; ++i) {
    lemo::v1::Device& device = *worker.add_devices();
    device.set_index(i);
    device.set_kind(lemo::v1::Device::CUDA);
    device.set_memory_bytes(80);
  }
  state.agent_streams = 1;
  state.waiting_events = 6;
  return state;
}

std::string Text(const ClusterState& state) {
  metrics::Registry registry(MetricFamilies());
  registry.AddSource(
      [&state](metrics::Samples* samples) { AddClusterSamples(state, kNow, samples); });
  return registry.Text();
}

TEST(CoordinatorMetrics, TellOfACluster) {
  const std::string text = Text(SmallCluster());
  for (const char* line :
       {"lemo_jobs{state=\"running\",reason=\"none\"} 1",
        "lemo_jobs{state=\"queued\",reason=\"devices_busy\"} 2",
        "lemo_queue_jobs 3",
        "lemo_queue_oldest_seconds 40",
        "lemo_job_attempt{job_name=\"jobs/a\"} 2",
        "lemo_job_restarts{job_name=\"jobs/a\"} 1",
        "lemo_job_step{job_name=\"jobs/a\"} 5",
        "lemo_job_steps{job_name=\"jobs/a\"} 100",
        "lemo_job_loss{job_name=\"jobs/a\"} 1.25",
        "lemo_job_learning_rate{job_name=\"jobs/a\"} 0.5",
        "lemo_job_grad_norm{job_name=\"jobs/a\"} 3",
        "lemo_job_step_seconds{job_name=\"jobs/a\"} 0.25",
        "lemo_job_tokens_per_second{job_name=\"jobs/a\"} 512",
        "lemo_job_memory_bytes{job_name=\"jobs/a\",category=\"saved_activations\"} 4096",
        "lemo_job_memory_bytes{job_name=\"jobs/a\",category=\"total\"} 5000",
        "lemo_job_contract_bytes{job_name=\"jobs/a\"} 6000",
        "lemo_job_allotted_bytes{job_name=\"jobs/a\"} 5500",
        "lemo_job_base_bytes{job_name=\"jobs/a\",base=\"b0\"} 4000",
        "lemo_job_checkpoint_age_seconds{job_name=\"jobs/a\"} 30",
        "lemo_workers{state=\"ready\"} 1",
        "lemo_workers{state=\"lost\"} 0",
        "lemo_worker_lease_remaining_seconds{worker=\"workers/w\"} 7",
        "lemo_worker_devices{worker=\"workers/w\",kind=\"cuda\"} 2",
        "lemo_worker_devices_busy{worker=\"workers/w\",kind=\"cuda\"} 1",
        "lemo_worker_device_memory_bytes{worker=\"workers/w\",kind=\"cuda\"} 160",
        "lemo_worker_host_memory_bytes{worker=\"workers/w\"} 64000",
        "lemo_agent_streams 1",
        "lemo_core_waiting_events 6"}) {
    EXPECT_THAT(text, HasSubstr(std::string(line) + "\n"));
  }
  EXPECT_THAT(text, Not(HasSubstr("lemo_job_eval_loss"))) << "there was no evaluation yet";
}

TEST(CoordinatorMetrics, AJobsSeriesGoWithIt) {
  ClusterState state = SmallCluster();
  state.placed.clear();
  state.workers[0].clear_jobs();
  EXPECT_THAT(Text(state), Not(HasSubstr("jobs/a")));
  EXPECT_THAT(Text(state),
              HasSubstr("lemo_worker_devices_busy{worker=\"workers/w\",kind=\"cuda\"} 0"));
}

TEST(CoordinatorMetrics, BeforeTheFirstStepThereAreNoFiguresOfSteps) {
  ClusterState state = SmallCluster();
  state.placed[0].progress.set_step(0);
  EXPECT_THAT(Text(state), HasSubstr("lemo_job_attempt"));
  EXPECT_THAT(Text(state), Not(HasSubstr("lemo_job_loss")));
}

class Commits : public ::testing::Test {
 protected:
  // A change of state at `seconds` after kNow.
  lemo::v1::StateChange& Enter(Job::State from, Job::State to, double seconds) {
    lemo::v1::JobEvent& event = persist_.events.emplace_back();
    *event.mutable_time() = ToTimestamp(kNow + absl::Seconds(seconds));
    event.mutable_state()->set_from(from);
    event.mutable_state()->set_to(to);
    return *event.mutable_state();
  }
  void Commit(const absl::Status& stored = absl::OkStatus()) {
    metrics_.OnCommit({persist_, StopValidation{"jobs/a"}}, absl::Milliseconds(3), stored);
    persist_.events.clear();
  }
  std::string Text() const { return metrics_.registry()->Text(); }

  Persist persist_;
  Metrics metrics_;
};

TEST_F(Commits, TheLifeOfAJobIsCounted) {
  Enter(Job::STATE_UNSPECIFIED, Job::VALIDATING, 0);
  Commit();
  persist_.record.queued_time = kNow + absl::Seconds(1);
  Enter(Job::VALIDATING, Job::QUEUED, 1);
  Enter(Job::QUEUED, Job::STARTING, 11);
  Enter(Job::STARTING, Job::STARTING, 12);  // another reason only
  *persist_.record.job.mutable_start_time() = ToTimestamp(kNow + absl::Seconds(11));
  Commit();
  lemo::v1::RunEvent& run = *persist_.events.emplace_back().mutable_run();
  run.mutable_step();
  run.set_unix_seconds(absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()) - 30);
  Commit();
  Enter(Job::RUNNING, Job::QUEUED, 41).mutable_failure()->set_kind(Failure::SYSTEM_ERROR);
  Commit();
  Enter(Job::RUNNING, Job::FAILED, 71).mutable_failure()->set_kind(Failure::OUT_OF_MEMORY);
  Commit();
  const std::string text = Text();
  for (const char* line :
       {"lemo_job_submissions_total{result=\"accepted\"} 1", "lemo_job_queue_wait_seconds_sum 10",
        "lemo_job_restarts_total 1",
        "lemo_jobs_ended_total{outcome=\"failed\",failure_kind=\"out_of_memory\"} 1",
        "lemo_jobs_ended_total{outcome=\"failed\",failure_kind=\"system_error\"} 0",
        "lemo_job_run_seconds_sum{outcome=\"failed\"} 60",
        "lemo_events_stored_total{kind=\"state\"} 6", "lemo_events_stored_total{kind=\"step\"} 1",
        "lemo_event_lag_seconds_bucket{le=\"10\"} 0", "lemo_event_lag_seconds_bucket{le=\"60\"} 1",
        "lemo_store_commit_seconds_count 5", "lemo_store_commit_changes_sum 5",
        "lemo_store_commit_failures_total 0"}) {
    EXPECT_THAT(text, HasSubstr(std::string(line) + "\n"));
  }
}

TEST_F(Commits, AmendmentsAreCountedByWhatTheyChange) {
  EXPECT_THAT(Text(), HasSubstr("lemo_job_amendments_total{action=\"contract_cut\"} 0\n"));
  for (const char* action : {"storage", "storage", "micro_batch", "of a later version"}) {
    persist_.events.emplace_back().mutable_run()->mutable_amendment()->set_action(action);
  }
  for (const auto kind : {lemo::v1::ContractChange::CUT, lemo::v1::ContractChange::WITHIN,
                          lemo::v1::ContractChange::RAISED, lemo::v1::ContractChange::CUT}) {
    persist_.events.emplace_back().mutable_contract()->set_kind(kind);
  }
  Commit();
  const std::string text = Text();
  for (const char* line :
       {"action=\"storage\"} 2", "action=\"micro_batch\"} 1", "action=\"keep\"} 0",
        "action=\"other\"} 1", "action=\"contract_cut\"} 2", "action=\"contract_within\"} 1",
        "action=\"contract_raised\"} 1"}) {
    EXPECT_THAT(text, HasSubstr(std::string("lemo_job_amendments_total{") + line + "\n"));
  }
  EXPECT_THAT(text, HasSubstr("lemo_events_stored_total{kind=\"contract\"} 4\n"));
}

TEST_F(Commits, RehearsalsAreCountedByHowTheyEnded) {
  EXPECT_THAT(Text(), HasSubstr("lemo_job_rehearsals_total{outcome=\"refused\"} 0\n"));
  for (const bool refused : {false, true, false}) {
    persist_.events.emplace_back().mutable_run()->mutable_rehearsal()->set_refused(refused);
  }
  Commit();
  for (const char* line : {"outcome=\"fitted\"} 2", "outcome=\"refused\"} 1"}) {
    EXPECT_THAT(Text(), HasSubstr(std::string("lemo_job_rehearsals_total{") + line + "\n"));
  }
}

TEST_F(Commits, WhatIsNotStoredHasNotHappened) {
  Enter(Job::STATE_UNSPECIFIED, Job::VALIDATING, 0);
  Commit(absl::ResourceExhaustedError("the disk is full"));
  EXPECT_THAT(Text(), HasSubstr("lemo_job_submissions_total{result=\"accepted\"} 0\n"));
  EXPECT_THAT(Text(), HasSubstr("lemo_store_commit_failures_total 1\n"));
}

TEST_F(Commits, StepsThatChangeNothingAreNoCommits) {
  metrics_.OnCommit({StopValidation{"jobs/a"}}, absl::Milliseconds(1), absl::OkStatus());
  EXPECT_THAT(Text(), Not(HasSubstr("lemo_store_commit_seconds")));
}

TEST_F(Commits, CallsAreCountedByMethodAndCode) {
  metrics_.OnCall("JobService/SubmitJob", "OK", absl::Milliseconds(2), /*unary=*/true);
  metrics_.OnCall("JobService/SubmitJob", "INVALID_ARGUMENT", absl::Milliseconds(2), true);
  metrics_.OnCall("JobService/WatchJob", "OK", absl::Hours(2), false);
  const std::string text = Text();
  for (const char* line :
       {"lemo_grpc_requests_total{method=\"JobService/SubmitJob\",code=\"INVALID_ARGUMENT\"} 1",
        "lemo_grpc_request_seconds_count{method=\"JobService/SubmitJob\"} 2",
        "lemo_job_submissions_total{result=\"refused\"} 1",
        "lemo_job_submissions_total{result=\"accepted\"} 0"}) {
    EXPECT_THAT(text, HasSubstr(std::string(line) + "\n"));
  }
  EXPECT_THAT(text,
              Not(HasSubstr("lemo_grpc_request_seconds_count{method=\"JobService/WatchJob\"")));
}

}  // namespace
}  // namespace lemo::coordinator
