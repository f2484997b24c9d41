// A predictor that one job has trained, and another takes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/e2e/service/service_fixture.h"

namespace lemo::coordinator {
namespace {

using lemo::v1::Job;
using testing::HasSubstr;

// Of blocks that are short enough for the documents there are.
lemo::v1::JobSpec Training(const Service& service) {
  lemo::v1::JobSpec spec = service.Spec();
  spec.mutable_run()->clear_tuner();
  lemo::v1::PredictorSpec& predictor = *spec.mutable_run()->mutable_predictor();
  predictor.set_block(4);
  predictor.set_r1(16);
  predictor.set_r2(16);
  predictor.set_p(8);
  return spec;
}

lemo::v1::JobSpec Choosing(const Service& service, const std::string& predictor) {
  lemo::v1::JobSpec spec = service.Spec();
  lemo::v1::TokensSpec& tokens = *spec.mutable_run()->mutable_tokens();
  tokens.set_policy("predictor");
  tokens.set_predictor(predictor);
  tokens.set_block(4);
  tokens.add_keep(0.5);
  return spec;
}

// The machine that trained it is gone: what goes on is the artifact.
TEST(PredictorOfAJob, IsTakenByOthersWhereverTheyRun) {
  Service service;
  service.PutInputs();
  service.StartAgent("a");
  // By contract, as any job.
  lemo::v1::JobSpec training = Training(service);
  training.mutable_plan()->set_prefer("smallest");
  const Job trained = service.Finish(service.Submit(training).name());
  ASSERT_EQ(trained.state(), Job::SUCCEEDED) << trained.failure().ShortDebugString();
  EXPECT_LE(trained.result().peak_bytes().total(), trained.contract().memory_bytes());
  service.KillAgent("a");
  std::filesystem::remove_all(service.AgentDir("a"));
  service.StartAgent("b");

  lemo::v1::JobSpec spec = Choosing(service, trained.name());
  const Job ran = service.Finish(service.Submit(spec).name());
  ASSERT_EQ(ran.state(), Job::SUCCEEDED) << ran.failure().ShortDebugString();
  EXPECT_EQ(ran.spec().run().tokens().predictor(), trained.name());

  // It is known before the start, so that a contract can be made for it.
  spec.mutable_plan()->set_prefer("fastest");
  spec.mutable_plan()->set_min_keep(0.1);
  const Job planned = service.Finish(service.Submit(spec).name());
  ASSERT_EQ(planned.state(), Job::SUCCEEDED) << planned.failure().ShortDebugString();
  const std::string quality = planned.contract().offer().quality();
  if (planned.contract().offer().kept() < 1 && planned.contract().offer().window() == 64) {
    EXPECT_THAT(quality, HasSubstr("its predictor keeps"));
  }
}

TEST(PredictorOfAJob, IsRefusedWhereThereIsNone) {
  Service service;
  service.PutInputs();
  service.StartAgent("a");
  const auto fault_of = [&](const std::string& predictor) {
    lemo::v1::SubmitJobRequest request;
    *request.mutable_spec() = Choosing(service, predictor);
    Job ignored;
    const grpc::Status status = service.jobs().SubmitJob(Patiently().get(), request, &ignored);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << predictor;
    return status.error_message();
  };
  EXPECT_THAT(fault_of("jobs/none"), HasSubstr("jobs/none: no such job"));
  EXPECT_THAT(fault_of("predictors/p"), HasSubstr("the job that trained one (jobs/{id})"));
  const Job tuned = service.Finish(service.Submit(service.Spec()).name());
  ASSERT_EQ(tuned.state(), Job::SUCCEEDED);
  EXPECT_THAT(fault_of(tuned.name()), HasSubstr("has trained no predictor"));
}

// Of other blocks than the run's: told before a device is touched.
TEST(PredictorOfAJob, IsRefusedWhereItDoesNotFit) {
  Service service;
  service.PutInputs();
  service.StartAgent("a");
  const Job trained = service.Finish(service.Submit(Training(service)).name());
  ASSERT_EQ(trained.state(), Job::SUCCEEDED) << trained.failure().ShortDebugString();
  lemo::v1::JobSpec spec = Choosing(service, trained.name());
  spec.mutable_run()->mutable_tokens()->set_block(8);
  const Job refused = service.Finish(service.Submit(spec).name());
  EXPECT_EQ(refused.state(), Job::FAILED);
  EXPECT_EQ(refused.failure().kind(), lemo::v1::Failure::USER_ERROR);
  EXPECT_EQ(refused.attempt(), 0);
  ASSERT_EQ(refused.failure().violations_size(), 1);
  EXPECT_EQ(refused.failure().violations(0).field(), "run.tokens.predictor");
  EXPECT_THAT(refused.failure().violations(0).reason(), HasSubstr("block is 4, wanted is 8"));
}

}  // namespace
}  // namespace lemo::coordinator
