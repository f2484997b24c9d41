// Jobs from submission to adapter, without faults.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "tests/e2e/service/service_fixture.h"

namespace lemo::coordinator {
namespace {

using lemo::v1::Job;
using testing::Contains;
using testing::HasSubstr;
using testing::IsSubsetOf;

constexpr const char* kAdapter = "adapter/adapter_model.safetensors";

// The fields that the error's BadRequest names.
std::vector<std::string> FieldsOf(const grpc::Status& status) {
  google::rpc::Status rich;
  EXPECT_TRUE(rich.ParseFromString(status.error_details()));
  google::rpc::BadRequest bad_request;
  for (const auto& detail : rich.details()) {
    if (detail.Is<google::rpc::BadRequest>()) detail.UnpackTo(&bad_request);
  }
  std::vector<std::string> fields;
  for (const auto& violation : bad_request.field_violations()) fields.push_back(violation.field());
  return fields;
}

TEST(Jobs, MakesTheAdapterOfAnUndisturbedRun) {
  Service service;
  service.PutInputs();
  service.StartAgent("a");
  const Job submitted = service.Submit(service.Spec());
  EXPECT_EQ(submitted.state(), Job::VALIDATING);
  std::vector<Job::State> states;
  int steps = 0;
  for (const auto& event : service.Watch(submitted.name(), [](const auto&) { return false; })) {
    if (event.has_state()) states.push_back(event.state().to());
    steps += event.run().has_step();
  }
  EXPECT_THAT(states, testing::ElementsAre(Job::VALIDATING, Job::QUEUED, Job::STARTING,
                                           Job::RUNNING, Job::SUCCEEDED));
  EXPECT_EQ(steps, 4);
  const Job job = service.Get(submitted.name());
  EXPECT_EQ(job.state(), Job::SUCCEEDED) << job.ShortDebugString();
  EXPECT_EQ(job.attempt(), 1);
  EXPECT_LT(job.result().eval_loss(), job.result().eval_loss_before());
  std::vector<std::string> paths;
  for (const auto& artifact : job.artifacts()) paths.push_back(artifact.path());
  EXPECT_THAT(std::vector<std::string>({kAdapter, "adapter/adapter_config.json", "report.html"}),
              IsSubsetOf(paths));
  EXPECT_EQ(service.DownloadedSha256(job.name(), kAdapter),
            service.UndisturbedSha256(service.Spec()));
  EXPECT_EQ(service.StopCoordinator(), 0);
}

TEST(Jobs, AWorkerWithoutTheModelFetchesIt) {
  Service service;
  service.workspace().CopyModel("model");
  // Of this path each program sees what lies in its own working directory: the agent nothing.
  service.PutInputs("/proc/self/cwd/model");
  std::filesystem::create_directories(service.workspace().path() / "no-models");
  const std::string none = (service.workspace().path() / "no-models").string();
  service.StartAgent("a", {"--model-root", none});
  const Job job = service.Finish(service.Submit(service.Spec()).name());
  ASSERT_EQ(job.state(), Job::SUCCEEDED) << job.ShortDebugString();
  int fetched = 0;
  for (const auto& entry :
       std::filesystem::recursive_directory_iterator(service.AgentDir("a") / "models")) {
    fetched += entry.path().filename() == "model.safetensors";
  }
  EXPECT_EQ(fetched, 1);
  EXPECT_EQ(service.DownloadedSha256(job.name(), kAdapter),
            service.UndisturbedSha256(service.Spec()));
}

// Ranks of lemo-train under mpirun, on one worker and over two.
TEST(Jobs, SeveralRanksTrainAsOneDoes) {
  Service service;
  service.PutInputs();
  service.StartAgent("a", {"--cpu-devices", "2"});
  lemo::v1::JobSpec spec = service.Spec();
  spec.mutable_run()->mutable_tuner()->mutable_lora()->add_targets("o_proj");
  const double alone = service.RunUndisturbed(spec).Last("result").at("eval_loss");
  spec.mutable_resources()->set_ranks(2);
  const Job together = service.Finish(service.Submit(spec).name());
  ASSERT_EQ(together.state(), Job::SUCCEEDED) << together.ShortDebugString();
  EXPECT_EQ(together.nodes_size(), 1);
  EXPECT_NEAR(together.result().eval_loss(), alone, 1e-6 * alone);

  service.StartAgent("b", {"--cpu-devices", "2"});
  spec.mutable_resources()->set_ranks(4);
  spec.mutable_run()->mutable_parallel()->set_tensor(2);
  const Job over_two = service.Finish(service.Submit(spec).name());
  ASSERT_EQ(over_two.state(), Job::SUCCEEDED) << over_two.ShortDebugString();
  EXPECT_EQ(over_two.nodes_size(), 2);
  EXPECT_NEAR(over_two.result().eval_loss(), alone, 1e-6 * alone);
}

TEST(Jobs, WaitsWithAReasonUntilAWorkerComes) {
  Service service;
  service.PutInputs();
  const Job job = service.Submit(service.Spec());
  service.Watch(job.name(), [](const auto& event) { return event.state().to() == Job::QUEUED; });
  const Job waiting = service.Get(job.name());
  EXPECT_EQ(waiting.reason_code(), Job::NO_WORKER);
  EXPECT_THAT(waiting.reason(), HasSubstr("worker"));
  service.StartAgent("a");
  EXPECT_EQ(service.Finish(job.name()).state(), Job::SUCCEEDED);
}

TEST(Jobs, AFaultySpecIsRefusedWithEveryField) {
  Service service;
  service.PutInputs();
  lemo::v1::SubmitJobRequest request;
  *request.mutable_spec() = service.Spec();
  request.mutable_spec()->mutable_resources()->set_ranks(0);
  request.mutable_spec()->mutable_run()->mutable_output()->set_dir("/etc");
  request.mutable_spec()->mutable_run()->mutable_data()->mutable_train(0)->set_path(
      "../../etc/passwd");
  Job job;
  const grpc::Status status = service.jobs().SubmitJob(Patiently().get(), request, &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(FieldsOf(status), testing::UnorderedElementsAre("resources.ranks", "run.output.dir",
                                                              "run.data.train[0].path"));
}

TEST(Jobs, FaultsOfTheRunSpecFailTheJobBeforeAWorkerSeesIt) {
  Service service;
  service.PutInputs();
  service.StartAgent("a");
  lemo::v1::JobSpec spec = service.Spec();
  spec.mutable_run()->mutable_train()->set_learning_rate(-1);
  spec.mutable_run()->mutable_tuner()->mutable_lora()->add_targets("no_such_proj");
  const Job job = service.Finish(service.Submit(spec).name());
  EXPECT_EQ(job.state(), Job::FAILED);
  EXPECT_EQ(job.attempt(), 0);
  EXPECT_EQ(job.failure().kind(), lemo::v1::Failure::USER_ERROR);
  std::vector<std::string> fields;
  for (const auto& one : job.failure().violations()) fields.push_back(one.field());
  EXPECT_THAT(fields, Contains("run.train.learning_rate"));
  lemo::v1::SubmitJobRequest request;
  *request.mutable_spec() = spec;
  request.set_validate_only(true);
  Job ignored;
  const grpc::Status status = service.jobs().SubmitJob(Patiently().get(), request, &ignored);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(FieldsOf(status), Contains("run.train.learning_rate"));
}

TEST(Jobs, ARepeatedRequestIsTheSameJob) {
  Service service;
  service.PutInputs();
  lemo::v1::SubmitJobRequest request;
  *request.mutable_spec() = service.Spec();
  request.set_request_id("6c0f2a0e-9d3c-4a53-a0ce-2b0c5c5f0a11");
  Job first, second, third;
  ASSERT_TRUE(service.jobs().SubmitJob(Patiently().get(), request, &first).ok());
  service.KillCoordinator();
  service.StartCoordinator();
  // A call on the broken connection fails; trying again is what the id is for.
  grpc::Status again;
  do {
    again = service.jobs().SubmitJob(Patiently().get(), request, &second);
  } while (again.error_code() == grpc::StatusCode::UNAVAILABLE);
  ASSERT_TRUE(again.ok()) << again.error_message();
  EXPECT_EQ(first.name(), second.name());
  request.mutable_spec()->mutable_run()->mutable_train()->set_steps(5);
  EXPECT_EQ(service.jobs().SubmitJob(Patiently().get(), request, &third).error_code(),
            grpc::StatusCode::ALREADY_EXISTS);
}

TEST(Jobs, CancelEndsAWaitingAndARunningJob) {
  Service service;
  service.PutInputs();
  lemo::v1::JobSpec spec = service.Spec();
  spec.mutable_run()->mutable_train()->set_steps(100'000);
  const Job waiting = service.Submit(spec);
  lemo::v1::CancelJobRequest request;
  request.set_name(waiting.name());
  Job job;
  ASSERT_TRUE(service.jobs().CancelJob(Patiently().get(), request, &job).ok());
  EXPECT_EQ(job.state(), Job::CANCELLED);
  ASSERT_TRUE(service.jobs().CancelJob(Patiently().get(), request, &job).ok()) << "again";

  service.StartAgent("a");
  const Job running = service.Submit(spec);
  service.Watch(running.name(), [](const auto& event) { return event.run().has_step(); });
  request.set_name(running.name());
  ASSERT_TRUE(service.jobs().CancelJob(Patiently().get(), request, &job).ok());
  EXPECT_EQ(service.Finish(running.name()).state(), Job::CANCELLED);
}

TEST(Jobs, APausedJobGoesOnWhereItWas) {
  Service service;
  service.PutInputs();
  service.StartAgent("a");
  lemo::v1::JobSpec spec = service.Spec();
  spec.mutable_run()->mutable_train()->set_steps(60);
  const std::string name = service.Submit(spec).name();
  service.Watch(name, [](const auto& event) { return event.run().step().step() == 3; });
  lemo::v1::PauseJobRequest pause;
  pause.set_name(name);
  Job job;
  ASSERT_TRUE(service.jobs().PauseJob(Patiently().get(), pause, &job).ok());
  service.Watch(name, [](const auto& event) { return event.state().to() == Job::PAUSED; });
  lemo::v1::ResumeJobRequest resume;
  resume.set_name(name);
  ASSERT_TRUE(service.jobs().ResumeJob(Patiently().get(), resume, &job).ok());
  job = service.Finish(name);
  EXPECT_EQ(job.state(), Job::SUCCEEDED) << job.ShortDebugString();
  EXPECT_EQ(job.attempt(), 2);
  EXPECT_EQ(service.DownloadedSha256(name, kAdapter), service.UndisturbedSha256(spec));
}

}  // namespace
}  // namespace lemo::coordinator
