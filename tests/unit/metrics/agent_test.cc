#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "worker/agent/metric_families.h"
#include "worker/agent/metrics.h"

namespace lemo::agent {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

AgentStatus Running() {
  AgentStatus status;
  status.connected = true;
  status.lease_renewed = Instant{} + std::chrono::seconds(100);
  status.lease = std::chrono::seconds(10);
  for (int i = 0; i < 2; ++i) {
    lemo::v1::Device& device = status.devices.emplace_back();
    device.set_index(i);
    device.set_kind(lemo::v1::Device::CPU);
    device.set_memory_bytes(1000);
  }
  status.host_memory_bytes = 5000;
  AttemptStatus& attempt = status.attempts.emplace_back();
  attempt.job = "jobs/a";
  attempt.state = AttemptStatus::State::kRunning;
  attempt.group = ::getpgrp();
  attempt.devices = {1};
  attempt.step.emplace();
  attempt.step->set_step(3);
  attempt.step->set_steps(10);
  attempt.step->set_loss(2.5);
  attempt.step->mutable_peak()->set_weights(77);
  attempt.checkpoint = Instant{} + std::chrono::seconds(92);
  attempt.waiting_events = 4;
  attempt.spool_bytes = 300;
  return status;
}

std::string Text(const AgentStatus& status) {
  metrics::Registry registry(MetricFamilies());
  registry.AddSource([&status](metrics::Samples* samples) {
    AddAgentSamples(status, Instant{} + std::chrono::seconds(102), samples);
  });
  return registry.Text();
}

TEST(AgentMetrics, TellOfAgentAndRank) {
  const std::string text = Text(Running());
  for (const char* line :
       {"lemo_agent_connected 1", "lemo_agent_lease_age_seconds 2", "lemo_agent_lease_seconds 10",
        "lemo_agent_draining 0", "lemo_agent_devices{kind=\"cpu\"} 2",
        "lemo_agent_devices_busy{kind=\"cpu\"} 1",
        "lemo_agent_device_memory_bytes{kind=\"cpu\"} 2000", "lemo_agent_host_memory_bytes 5000",
        "lemo_agent_attempts{state=\"running\"} 1", "lemo_agent_attempts{state=\"ended\"} 0",
        "lemo_agent_spool_waiting_events 4", "lemo_agent_spool_bytes 300",
        "lemo_rank_step{job_name=\"jobs/a\",rank=\"0\"} 3",
        "lemo_rank_loss{job_name=\"jobs/a\",rank=\"0\"} 2.5",
        "lemo_rank_memory_bytes{job_name=\"jobs/a\",rank=\"0\",category=\"weights\"} 77",
        "lemo_rank_checkpoint_age_seconds{job_name=\"jobs/a\",rank=\"0\"} 10"}) {
    EXPECT_THAT(text, HasSubstr(std::string(line) + "\n"));
  }
  // This process stands for a rank.
  EXPECT_THAT(text, HasSubstr("lemo_gang_resident_memory_bytes{job_name=\"jobs/a\"}"));
  EXPECT_THAT(text, HasSubstr("lemo_gang_cpu_seconds_total{job_name=\"jobs/a\"}"));
}

TEST(AgentMetrics, TellOfRowsThatWereKept) {
  AgentStatus status = Running();
  EXPECT_THAT(Text(status), Not(HasSubstr("_ratio")));
  EXPECT_THAT(Text(status), Not(HasSubstr("bad_blocks")));
  lemo::v1::StepEvent& step = *status.attempts[0].step;
  step.set_seconds(2);
  lemo::v1::TokenSparsity& sparsity = *step.mutable_sparsity();
  for (const double share : {0.5, 0.25}) sparsity.add_attention_kept(share);
  for (const double share : {0.5, 1.0}) sparsity.add_mlp_kept(share);
  sparsity.set_never_kept(0.125);
  sparsity.set_loss_kept(0.875);
  sparsity.set_selection_seconds(0.25);
  status.attempts[0].bad_blocks = 3;
  const std::string rank = "{job_name=\"jobs/a\",rank=\"0\"";
  std::string text = Text(status);
  for (const std::string& line :
       {"lemo_rank_rows_kept_ratio" + rank + ",sub_block=\"attention\"} 0.375",
        "lemo_rank_rows_kept_ratio" + rank + ",sub_block=\"mlp\"} 0.75",
        "lemo_rank_rows_never_kept_ratio" + rank + "} 0.125",
        "lemo_rank_labelled_rows_kept_ratio" + rank + "} 0.875",
        "lemo_rank_selection_time_ratio" + rank + "} 0.125",
        "lemo_rank_bad_blocks_total" + rank + "} 3"}) {
    EXPECT_THAT(text, HasSubstr(line + "\n"));
  }
  EXPECT_THAT(text, Not(HasSubstr("recall")));
  status.attempts[0].recall = 0.75;
  EXPECT_THAT(Text(status), HasSubstr("lemo_rank_selection_recall_ratio" + rank + "} 0.75\n"));
  // While it cools down the counter stays, the shares go.
  step.clear_sparsity();
  text = Text(status);
  EXPECT_THAT(text, Not(HasSubstr("_ratio")));
  EXPECT_THAT(text, HasSubstr("lemo_rank_bad_blocks_total"));
}

TEST(AgentMetrics, ARanksSeriesGoWithIt) {
  AgentStatus status = Running();
  status.attempts[0].state = AttemptStatus::State::kEnded;
  EXPECT_THAT(Text(status), Not(HasSubstr("jobs/a")));
  EXPECT_THAT(Text(status), HasSubstr("lemo_agent_devices_busy{kind=\"cpu\"} 0\n"));
}

TEST(AgentMetrics, BeforeTheFirstLeaseAndStepThoseSeriesAreNotThere) {
  AgentStatus status = Running();
  status.lease_renewed.reset();
  status.attempts[0].step.reset();
  status.attempts[0].checkpoint.reset();
  const std::string text = Text(status);
  EXPECT_THAT(text, Not(HasSubstr("lemo_agent_lease_age_seconds")));
  EXPECT_THAT(text, Not(HasSubstr("lemo_rank_loss")));
  EXPECT_THAT(text, Not(HasSubstr("lemo_rank_checkpoint_age_seconds")));
}

TEST(AgentMetrics, CountsEndsAndLimits) {
  Metrics metrics(::testing::TempDir(), "1");
  metrics.OnGangStarted();
  lemo::v1::AttemptEnded ended;
  ended.set_outcome(lemo::v1::AttemptEnded::SUCCEEDED);
  metrics.OnAttemptEnded(ended);
  ended.set_outcome(lemo::v1::AttemptEnded::FAILED);
  ended.mutable_failure()->set_kind(lemo::v1::Failure::LIMIT_EXCEEDED);
  ended.mutable_failure()->set_message("limits.disk_bytes: the job's directory has 9 bytes");
  metrics.OnAttemptEnded(ended);
  metrics.Publish(Running());
  const std::string text = metrics.registry()->Text();
  for (const char* line :
       {"lemo_agent_gangs_started_total 1",
        "lemo_agent_attempts_ended_total{outcome=\"succeeded\",failure_kind=\"none\"} 1",
        "lemo_agent_attempts_ended_total{outcome=\"failed\",failure_kind=\"limit_exceeded\"} 1",
        "lemo_agent_attempts_ended_total{outcome=\"failed\",failure_kind=\"system_error\"} 0",
        "lemo_agent_limits_exceeded_total{limit=\"disk_bytes\"} 1",
        "lemo_agent_limits_exceeded_total{limit=\"run_seconds\"} 0", "lemo_agent_connected 1"}) {
    EXPECT_THAT(text, HasSubstr(std::string(line) + "\n"));
  }
}

}  // namespace
}  // namespace lemo::agent
