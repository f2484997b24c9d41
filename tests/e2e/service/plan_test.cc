// From a plan to a contract that is kept, through real processes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <string>
#include <vector>

#include "common/format.h"
#include "tests/e2e/service/service_fixture.h"

namespace lemo::coordinator {
namespace {

using lemo::v1::Job;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kAdapter = "adapter/adapter_model.safetensors";

// What `lemo` prints.
std::string Lemo(const Service& service, std::vector<std::string> args) {
  args.insert(args.begin(), {"--coordinator", service.address()});
  train::Process lemo(LEMO_PROGRAM, args, {});
  std::string text;
  const auto deadline = train::Process::Clock::now() + std::chrono::seconds(60);
  while (const auto line = lemo.NextLine(deadline)) text += *line + "\n";
  EXPECT_EQ(lemo.Wait(), 0) << lemo.Errors();
  return text;
}

class Plan : public testing::Test {
 protected:
  lemo::v1::PlanJobResponse Ask(const lemo::v1::JobSpec& spec) {
    lemo::v1::PlanJobRequest request;
    *request.mutable_spec() = spec;
    lemo::v1::PlanJobResponse response;
    const grpc::Status status = service_.jobs().PlanJob(Patiently().get(), request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  static std::vector<std::string> Ids(const lemo::v1::PlanJobResponse& response) {
    std::vector<std::string> ids;
    for (const lemo::v1::Offer& offer : response.plan().offers()) ids.push_back(offer.id());
    return ids;
  }

  void Cancel(const std::string& job) {
    lemo::v1::CancelJobRequest request;
    request.set_name(job);
    Job ignored;
    EXPECT_TRUE(service_.jobs().CancelJob(Patiently().get(), request, &ignored).ok());
  }

  Service service_;
};

TEST_F(Plan, TheSameJobHasTheSameOffersAlsoAfterARestart) {
  service_.PutInputs();
  const lemo::v1::PlanJobResponse first = Ask(service_.Spec());
  ASSERT_GT(first.plan().offers_size(), 1);
  EXPECT_TRUE(first.has_expire_time());
  EXPECT_FALSE(first.plan().offers(0).has_start_time());
  EXPECT_EQ(first.plan().offers(0).start_reason(), "no worker is connected");
  const int last = first.plan().offers_size() - 1;
  EXPECT_LT(first.plan().offers(0).high().total(), first.plan().offers(last).high().total());
  EXPECT_GT(first.plan().offers(0).run_seconds(), first.plan().offers(last).run_seconds());

  service_.KillCoordinator();
  service_.StartCoordinator();
  service_.StartAgent("a");
  lemo::v1::PlanJobResponse again;
  // A call on the broken connection fails.
  lemo::v1::PlanJobRequest request;
  *request.mutable_spec() = service_.Spec();
  grpc::Status status;
  do {
    status = service_.jobs().PlanJob(Patiently().get(), request, &again);
  } while (status.error_code() == grpc::StatusCode::UNAVAILABLE);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(Ids(again), Ids(first));
}

TEST_F(Plan, AnImpossibleWishIsAnsweredWithTheNearest) {
  service_.PutInputs();
  lemo::v1::JobSpec spec = service_.Spec();
  spec.mutable_plan()->set_max_memory_bytes(1024);
  const lemo::v1::PlanJobResponse response = Ask(spec);
  EXPECT_EQ(response.plan().offers_size(), 0);
  ASSERT_GT(response.plan().nearest_size(), 0);
  ASSERT_EQ(response.plan().advice_size(), 1);
  EXPECT_EQ(response.plan().advice(0).bound(), "max_memory_bytes");
  EXPECT_EQ(response.plan().advice(0).needed(),
            static_cast<double>(response.plan().nearest(0).high().total()));

  const Job job = service_.Finish(service_.Submit(spec).name());
  EXPECT_EQ(job.state(), Job::FAILED);
  EXPECT_EQ(job.failure().kind(), lemo::v1::Failure::USER_ERROR);
  ASSERT_EQ(job.failure().violations_size(), 1);
  EXPECT_EQ(job.failure().violations(0).field(), "plan.max_memory_bytes");
  EXPECT_THAT(job.failure().violations(0).reason(), HasSubstr("would do"));
}

TEST_F(Plan, AnOfferThatIsNotThereIsRefused) {
  service_.PutInputs();
  lemo::v1::JobSpec spec = service_.Spec();
  spec.mutable_plan()->set_offer("0123456789abcdef");
  const Job job = service_.Finish(service_.Submit(spec).name());
  EXPECT_EQ(job.state(), Job::FAILED);
  EXPECT_EQ(job.failure().kind(), lemo::v1::Failure::USER_ERROR);
  EXPECT_EQ(job.failure().violations(0).field(), "plan.offer");
  EXPECT_THAT(job.failure().advice(), HasSubstr("lemo plan"));
}

// An offer that was made under a bound is found without it; the run is the one that it says, and
// stays within its bytes.
TEST_F(Plan, AnAcceptedOfferIsWhatRuns) {
  service_.PutInputs();
  lemo::v1::JobSpec spec = service_.Spec();
  const lemo::v1::PlanJobResponse all = Ask(spec);
  const lemo::v1::Offer& smallest = all.plan().offers(0);
  const lemo::v1::Offer& largest = all.plan().offers(all.plan().offers_size() - 1);
  spec.mutable_plan()->set_max_memory_bytes((smallest.high().total() + largest.high().total()) / 2);
  spec.mutable_plan()->set_prefer("fastest");
  const lemo::v1::PlanJobResponse bounded = Ask(spec);
  const std::string id = bounded.plan().preferred();
  ASSERT_FALSE(id.empty());

  service_.StartAgent("a");
  spec.clear_plan();
  spec.mutable_plan()->set_offer(id.substr(0, 12));
  const Job submitted = service_.Submit(spec);
  EXPECT_EQ(submitted.state(), Job::PLANNING);
  std::vector<Job::State> states;
  std::vector<lemo::v1::StepEvent> steps;
  int amendments = 0;
  for (const auto& event : service_.Watch(submitted.name(), [](const auto&) { return false; })) {
    if (event.has_state()) states.push_back(event.state().to());
    if (event.run().has_step()) steps.push_back(event.run().step());
    amendments += event.run().has_amendment() ? 1 : 0;
  }
  EXPECT_THAT(states,
              ElementsAre(Job::PLANNING, Job::QUEUED, Job::STARTING, Job::RUNNING, Job::SUCCEEDED));
  const Job job = service_.Get(submitted.name());
  // The ranks are held to it, and it was enough.
  ASSERT_EQ(steps.size(), 4u);
  for (const lemo::v1::StepEvent& step : steps) {
    EXPECT_EQ(step.memory().budget_bytes(), job.contract().memory_bytes());
  }
  EXPECT_EQ(amendments, 0);
  EXPECT_EQ(job.contract().offer().id(), id);
  EXPECT_EQ(job.contract().memory_bytes(), job.contract().offer().high().total());
  EXPECT_EQ(job.spec().resources().memory_bytes(), job.contract().memory_bytes());
  EXPECT_EQ(job.spec().run().memory().policy(),
            job.contract().offer().overrides().memory().policy());
  EXPECT_GT(job.progress().peak_bytes(), 0);
  EXPECT_LE(job.result().peak_bytes().total(), job.contract().memory_bytes());
  // And a person sees both.
  EXPECT_THAT(Lemo(service_, {"job", "get", job.name()}),
              testing::AllOf(HasSubstr(id), HasSubstr("PEAK SO FAR"),
                             HasSubstr(HumanBytes(job.contract().memory_bytes())),
                             HasSubstr(HumanBytes(job.progress().peak().total()))));
  EXPECT_EQ(service_.DownloadedSha256(job.name(), kAdapter),
            service_.UndisturbedSha256(job.spec()));
}

// What two runs took over what was foretold of them is the next forecast's factor, and a person
// sees both runs. That the offers are the same ones stays. The coordinator stands on rates that
// were calibrated while it ran.
TEST_F(Plan, FinishedRunsCorrectTheNextForecast) {
  service_.PutInputs();
  const std::string rates = (service_.workspace().path() / "coordinator/rates.json").string();
  const train::Outcome calibrated = service_.workspace().RunPlain(
      {"calibrate", "--seconds", "0", "--device", "cpu", "--compute-type",
       service_.Spec().run().model().compute_type(), "--rates", rates});
  ASSERT_EQ(calibrated.exit_code, 0) << calibrated.err;
  lemo::v1::JobSpec spec = service_.Spec();
  const lemo::v1::PlanJobResponse before = Ask(spec);
  ASSERT_GT(before.plan().offers_size(), 0);
  EXPECT_TRUE(before.plan().rates().has_calibration());
  const lemo::v1::Offer& first = before.plan().offers(0);
  EXPECT_EQ(first.correction().runs(), 0);
  EXPECT_EQ(first.correction().ratio(), 1);
  EXPECT_EQ(first.step().total(), first.forecast().predicted_step_seconds());

  service_.StartAgent("a");
  spec.mutable_plan()->set_prefer("smallest");
  double logarithms = 0;
  for (int i = 0; i < 2; ++i) {
    const Job job = service_.Finish(service_.Submit(spec).name());
    ASSERT_EQ(job.state(), Job::SUCCEEDED) << job.ShortDebugString();
    const lemo::v1::RunForecast& took = job.result().forecast();
    EXPECT_GT(took.measured_step_seconds(), 0);
    EXPECT_EQ(took.measured_peak_bytes(), job.result().peak_bytes().total());
    EXPECT_GT(took.predicted_peak_bytes(), 0);
    logarithms += std::log(took.measured_step_seconds() /
                           job.contract().offer().forecast().predicted_step_seconds());
  }
  const lemo::v1::PlanJobResponse after = Ask(service_.Spec());
  EXPECT_EQ(Ids(after), Ids(before));
  ASSERT_EQ(after.plan().history_size(), 2);
  const lemo::v1::Offer& corrected = after.plan().offers(0);
  EXPECT_EQ(corrected.correction().runs(), 2);
  const double ratio = std::clamp(std::exp(logarithms / 2), 0.25, 4.0);
  EXPECT_NEAR(corrected.correction().ratio() / ratio, 1, 1e-9);
  EXPECT_NEAR(corrected.step().total() / (ratio * first.step().total()), 1, 1e-9);
  EXPECT_NEAR(corrected.run_seconds() / (ratio * first.run_seconds()), 1, 1e-9);
}

// Ranks of two jobs on one device, each with the result of its run alone; a job without a contract
// waits until both are gone.
TEST_F(Plan, JobsWithContractsShareADevice) {
  service_.PutInputs();
  service_.StartAgent("a", {"--cpu-devices", "1"});
  lemo::v1::JobSpec spec = service_.Spec();
  spec.mutable_plan()->set_prefer("smallest");
  spec.mutable_run()->mutable_train()->set_steps(100'000);
  const std::string endless = service_.Submit(spec).name();
  service_.Watch(endless, [](const auto& event) { return event.run().has_step(); });

  const std::string alone = service_.Submit(service_.Spec()).name();
  service_.Watch(
      alone, [](const auto& event) { return event.state().reason_code() == Job::DEVICES_BUSY; });
  Cancel(alone);

  spec = service_.Spec();
  spec.mutable_plan()->set_prefer("smallest");
  const Job beside = service_.Finish(service_.Submit(spec).name());
  ASSERT_EQ(beside.state(), Job::SUCCEEDED) << beside.ShortDebugString();
  EXPECT_EQ(service_.Get(endless).state(), Job::RUNNING);
  EXPECT_EQ(service_.Get(endless).attempt(), 1);
  EXPECT_EQ(service_.DownloadedSha256(beside.name(), kAdapter),
            service_.UndisturbedSha256(beside.spec()));
  Cancel(endless);
  EXPECT_EQ(service_.Finish(endless).state(), Job::CANCELLED);
}

}  // namespace
}  // namespace lemo::coordinator
