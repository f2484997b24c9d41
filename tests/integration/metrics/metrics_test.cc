// Metrics as an operator meets them: daemons with a job, promtool, Prometheus.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "tests/e2e/service/service_fixture.h"
#include "tests/integration/metrics/prometheus.h"
#include "tests/support/http_get.h"

namespace lemo::metrics {
namespace {

namespace fs = std::filesystem;
using coordinator::Patiently;
using lemo::v1::Job;
using ::testing::HasSubstr;
using ::testing::Not;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::minutes kPatience{1};

bool Await(const std::function<bool()>& holds) {
  const auto deadline = Clock::now() + kPatience;
  while (!holds()) {
    if (Clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return true;
}

class MetricsTest : public ::testing::Test {
 protected:
  MetricsTest() : service_({"--lease-seconds", "8", "--metrics-listen", "127.0.0.1:0"}) {}

  void SetUp() override {
    ASSERT_TRUE(LEMO_PROMETHEUS[0] != '\0' && LEMO_PROMTOOL[0] != '\0')
        << "prometheus and promtool are missing. Bring them, and let cmake find them: ./dev setup";
    service_.PutInputs();
    service_.StartAgent("a", {"--metrics-listen", "127.0.0.1:0"});
    coordinator_ = AddressIn(service_.workspace().path() / "coordinator");
    agent_ = AddressIn(service_.AgentDir("a"));
  }

  std::string AddressIn(const fs::path& directory) {
    const fs::path file = directory / "metrics_address";
    EXPECT_TRUE(Await([&] { return fs::exists(file); })) << file;
    return std::string(absl::StripAsciiWhitespace(train::ReadAll(file)));
  }

  static std::string Scrape(const std::string& address) {
    const auto answer = lemo::testing::HttpGet(address, "/metrics");
    EXPECT_EQ(answer.status, 200) << address;
    return answer.body;
  }

  // A job that makes steps, and checkpoints, until it is cancelled.
  std::string StartLongJob() {
    lemo::v1::JobSpec spec = service_.Spec();
    spec.mutable_run()->mutable_train()->set_steps(1'000'000);
    spec.mutable_run()->mutable_checkpoint()->set_every_steps(2);
    const std::string name = service_.Submit(spec).name();
    service_.Watch(name, [](const auto& event) { return event.run().step().step() == 5; });
    return name;
  }

  coordinator::Service service_;
  std::string coordinator_, agent_;
};

TEST_F(MetricsTest, TellOfAJobWhileItRunsAndCountItsEnd) {
  ASSERT_EQ(service_.Finish(service_.Submit(service_.Spec()).name()).state(), Job::SUCCEEDED);
  std::string text = Scrape(coordinator_);
  for (const char* line :
       {"lemo_jobs_ended_total{outcome=\"succeeded\",failure_kind=\"none\"} 1",
        "lemo_job_submissions_total{result=\"accepted\"} 1", "lemo_job_queue_wait_seconds_count 1",
        "lemo_job_run_seconds_count{outcome=\"succeeded\"} 1",
        "lemo_events_stored_total{kind=\"step\"} 4", "lemo_workers{state=\"ready\"} 1",
        "lemo_queue_jobs 0", "lemo_agent_streams 1"}) {
    EXPECT_THAT(text, HasSubstr(absl::StrCat(line, "\n")));
  }
  EXPECT_THAT(text, Not(HasSubstr("job_name="))) << "no job is on a worker";

  const std::string name = StartLongJob();
  text = Scrape(coordinator_);
  EXPECT_THAT(text, HasSubstr("lemo_jobs{state=\"running\",reason=\"none\"} 1\n"));
  for (const char* family : {"lemo_job_step", "lemo_job_step_seconds", "lemo_job_tokens_per_second",
                             "lemo_job_loss", "lemo_job_learning_rate", "lemo_job_grad_norm",
                             "lemo_job_checkpoint_age_seconds", "lemo_job_restarts"}) {
    EXPECT_THAT(text, HasSubstr(absl::StrCat("\n", family, "{job_name=\"", name, "\"} ")));
  }
  EXPECT_THAT(text, HasSubstr(absl::StrCat("lemo_job_memory_bytes{job_name=\"", name,
                                           "\",category=\"weights\"} ")));
  const std::string agent = Scrape(agent_);
  EXPECT_THAT(agent, HasSubstr("lemo_agent_connected 1\n"));
  EXPECT_THAT(agent, HasSubstr("lemo_agent_gangs_started_total 2\n"));
  EXPECT_THAT(agent, HasSubstr("lemo_agent_devices_busy{kind=\"cpu\"} 1\n"));
  for (const char* family : {"lemo_gang_resident_memory_bytes", "lemo_gang_cpu_seconds_total"}) {
    EXPECT_THAT(agent, HasSubstr(absl::StrCat("\n", family, "{job_name=\"", name, "\"} ")));
  }
  for (const char* family : {"lemo_rank_step", "lemo_rank_loss", "lemo_rank_tokens_per_second",
                             "lemo_rank_checkpoint_age_seconds"}) {
    EXPECT_THAT(agent,
                HasSubstr(absl::StrCat("\n", family, "{job_name=\"", name, "\",rank=\"0\"} ")));
  }

  lemo::v1::CancelJobRequest request;
  request.set_name(name);
  Job job;
  ASSERT_TRUE(service_.jobs().CancelJob(Patiently().get(), request, &job).ok());
  ASSERT_EQ(service_.Finish(name).state(), Job::CANCELLED);
  text = Scrape(coordinator_);
  EXPECT_THAT(text, Not(HasSubstr(name)));
  EXPECT_THAT(text,
              HasSubstr("lemo_jobs_ended_total{outcome=\"cancelled\",failure_kind=\"none\"} 1\n"));
  EXPECT_TRUE(Await([&] { return Scrape(agent_).find(name) == std::string::npos; }));
}

TEST_F(MetricsTest, PromtoolAndPrometheusAreContent) {
  StartLongJob();
  const fs::path directory = service_.workspace().path();
  for (const std::string& address : {coordinator_, agent_}) {
    Scrape(address);  // what the server counts of its own answers is there from the second on
    service_.workspace().Write("page.txt", Scrape(address));
    ExpectPromtoolIsContent(directory, {"check", "metrics"});
  }
  ExpectPromtoolIsContent(directory,
                          {"check", "rules", LEMO_SOURCE_DIR "/deploy/prometheus/alerts.yml"});

  Prometheus prometheus(directory / "prometheus", coordinator_, agent_);
  for (const char* query :
       {"up{job=\"lemo-coordinator\"} == 1", "up{job=\"lemo-worker\"} == 1",
        "lemo_job_loss{job=\"lemo-coordinator\", job_name=~\"jobs/.+\"}",
        "lemo_rank_loss{job=\"lemo-worker\", job_name=~\"jobs/.+\"}",
        "histogram_quantile(0.5, rate(lemo_store_commit_seconds_bucket[1m])) > 0"}) {
    EXPECT_EQ(prometheus.Await(query).size(), 1u) << query << "\n" << prometheus.Log();
  }
  EXPECT_EQ(prometheus.Stop(), 0) << prometheus.Log();
}

TEST_F(MetricsTest, AnAddressThatCannotBeServedIsRefusedInOneLine) {
  const fs::path directory = service_.workspace().path();
  const auto refusal = [&](const char* program, std::vector<std::string> args) {
    train::Process process(program, args, train::ProcessOptions{directory, {}, {}});
    EXPECT_EQ(process.Wait(), 2);
    return process.Errors();
  };
  const std::vector<std::string> coordinator = {
      "--dir", "other", "--listen", "127.0.0.1:0", "--train", train::Workspace::Program()};
  const std::vector<std::string> agent = {
      "--dir", "other-agent", "--coordinator", service_.address(), "--cuda", "none"};
  for (const auto& [program, args] :
       {std::pair(LEMO_COORDINATOR_BINARY, coordinator), std::pair(LEMO_WORKER_BINARY, agent)}) {
    std::vector<std::string> taken = args, open = args;
    taken.insert(taken.end(), {"--metrics-listen", coordinator_});
    EXPECT_THAT(refusal(program, taken),
                HasSubstr("--metrics-listen: cannot listen on " + coordinator_));
    open.insert(open.end(), {"--metrics-listen", "0.0.0.0:0"});
    EXPECT_THAT(refusal(program, open), HasSubstr("say --insecure-listen\n"));
  }
}

}  // namespace
}  // namespace lemo::metrics
