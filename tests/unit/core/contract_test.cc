// From a wish to a contract, and what a contract does to a job and to devices.
#include "coordinator/core/contract.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/unit/core/harness.h"

namespace lemo::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

constexpr int64_t kMiB = int64_t{1} << 20;
const absl::Time kNow = absl::FromUnixSeconds(1'000'000);

lemo::v1::Offer MakeOffer(const std::string& id, int64_t bytes, double seconds, double kept = 1) {
  lemo::v1::Offer offer;
  offer.set_id(id);
  offer.set_ranks(1);
  offer.set_device("cpu");
  offer.mutable_high()->set_total(bytes);
  offer.set_run_seconds(seconds);
  offer.set_kept(kept);
  lemo::v1::RunSpec& run = *offer.mutable_overrides();
  run.mutable_model()->set_compute_type("float32");
  run.mutable_data()->set_max_length(512);
  run.mutable_train()->set_micro_batch_tokens(1024);
  run.mutable_memory()->set_policy("mlp");
  lemo::v1::LayerPolicy& layers = *run.mutable_memory()->add_layers();
  layers.set_first(2);
  layers.set_last(3);
  layers.set_policy("input");
  run.mutable_parallel()->set_tensor(1);
  run.mutable_parallel()->set_data(1);
  return offer;
}

lemo::v1::Contract MakeContract(int64_t bytes, double seconds = 100) {
  lemo::v1::Contract contract;
  *contract.mutable_offer() = MakeOffer("0123456789abcdef", bytes, seconds);
  contract.set_memory_bytes(bytes);
  return contract;
}

std::vector<std::string> FaultsOf(const lemo::v1::JobSpec& spec) {
  Violations violations;
  CheckPlan(spec, kNow, &violations);
  std::vector<std::string> fields;
  for (const Violation& violation : violations.kept()) fields.push_back(violation.field);
  return fields;
}

TEST(Contract, EveryFaultOfAWishIsNamed) {
  lemo::v1::JobSpec spec;
  EXPECT_THAT(FaultsOf(spec), IsEmpty());
  lemo::v1::PlanSpec& plan = *spec.mutable_plan();
  EXPECT_THAT(FaultsOf(spec), IsEmpty());
  plan.set_prefer("cheapest");
  plan.set_offer("1234");
  plan.set_max_memory_bytes(-1);
  plan.set_max_run_seconds(0);
  plan.set_finish_by("tomorrow");
  plan.set_min_keep(1.5);
  plan.set_min_memory_bytes(0);
  plan.set_max_device_hours(-2);
  plan.add_ranks(0);
  plan.add_keep(0);
  spec.mutable_resources()->set_ranks(2);
  spec.mutable_resources()->set_min_ranks(1);
  spec.mutable_resources()->set_memory_bytes(1);
  spec.mutable_resources()->set_device("cuda");
  EXPECT_THAT(FaultsOf(spec),
              UnorderedElementsAre("plan.min_memory_bytes", "plan.min_memory_bytes", "plan.prefer",
                                   "plan.prefer", "plan.offer", "plan.max_memory_bytes",
                                   "plan.max_run_seconds", "plan.finish_by", "plan.min_keep",
                                   "plan.max_device_hours", "plan.ranks", "plan.keep[0]",
                                   "resources.memory_bytes", "resources.ranks",
                                   "resources.min_ranks", "resources.device"));
  spec.Clear();
  spec.mutable_plan()->set_finish_by("1970-01-12T13:46:39Z");  // a second ago
  EXPECT_THAT(FaultsOf(spec), ElementsAre("plan.finish_by"));
}

TEST(Contract, TheQuestionHasWhatLemoTrainNeeds) {
  lemo::v1::JobSpec spec;
  spec.mutable_resources()->set_ranks(4);
  spec.mutable_plan()->set_finish_by("1970-01-12T13:48:20Z");
  spec.mutable_plan()->set_max_run_seconds(3600);
  spec.mutable_plan()->set_elastic(true);
  spec.mutable_plan()->set_min_memory_bytes(1);
  const lemo::v1::PlanSpec question = PlanQuestion(spec, kNow);
  EXPECT_THAT(question.ranks(), ElementsAre(4));
  EXPECT_EQ(question.max_run_seconds(), 100);
  EXPECT_FALSE(question.has_finish_by());
  EXPECT_FALSE(question.has_elastic());
  EXPECT_FALSE(question.has_min_memory_bytes());
}

lemo::v1::PlanResult MakePlan() {
  lemo::v1::PlanResult plan;
  *plan.add_offers() = MakeOffer("aaaaaaaa01", 100 * kMiB, 300);
  *plan.add_offers() = MakeOffer("bbbbbbbb01", 200 * kMiB, 200, 0.5);
  *plan.add_offers() = MakeOffer("cccccccc01", 400 * kMiB, 100, 0.5);
  plan.set_preferred("aaaaaaaa01");
  return plan;
}

scheduler::Outlook OneDevice(std::optional<double> busy_for = std::nullopt) {
  scheduler::Outlook outlook;
  scheduler::Worker& worker = outlook.workers.emplace_back();
  worker.id = "w";
  worker.devices.push_back({0, scheduler::DeviceKind::kCpu, 300 * kMiB});
  if (busy_for) outlook.occupants.push_back({"jobs/x", {{"w", {0}}}, false, 0, busy_for, {}});
  return outlook;
}

JobRecord Asking(const std::string& finish_by = "", const std::string& prefer = "") {
  JobRecord record;
  lemo::v1::PlanSpec& plan = *record.job.mutable_spec()->mutable_plan();
  if (!finish_by.empty()) plan.set_finish_by(finish_by);
  if (!prefer.empty()) plan.set_prefer(prefer);
  return record;
}

TEST(Contract, OffersSayWhenTheyCouldStartAndEnd) {
  const scheduler::FifoScheduler fifo;
  lemo::v1::PlanResult plan = MakePlan();
  AddTimes(fifo, OneDevice(60), Asking(), kNow, &plan);
  ASSERT_EQ(plan.offers_size(), 3);
  EXPECT_EQ(plan.offers(0).start_time().seconds(), 1'000'060);
  EXPECT_EQ(plan.offers(0).finish_time().seconds(), 1'000'360);
  EXPECT_THAT(plan.offers(0).start_reason(), HasSubstr("busy"));
  // There is no device for the largest.
  EXPECT_FALSE(plan.offers(2).has_start_time());
  EXPECT_FALSE(plan.offers(2).has_finish_time());
  EXPECT_THAT(plan.offers(2).start_reason(), HasSubstr("largest device has 0.3 GiB"));
  EXPECT_EQ(plan.preferred(), "aaaaaaaa01");
}

TEST(Contract, WhatWouldEndTooLateIsNoOffer) {
  const scheduler::FifoScheduler fifo;
  lemo::v1::PlanResult plan = MakePlan();
  // 280 s from now: 60 s of waiting leave 220.
  AddTimes(fifo, OneDevice(60), Asking("1970-01-12T13:51:20Z"), kNow, &plan);
  ASSERT_EQ(plan.offers_size(), 1);
  EXPECT_EQ(plan.preferred(), "bbbbbbbb01");

  plan = MakePlan();
  AddTimes(fifo, OneDevice(60), Asking("1970-01-12T13:50:00Z"), kNow, &plan);
  EXPECT_EQ(plan.offers_size(), 0);
  EXPECT_EQ(plan.preferred(), "");
  ASSERT_EQ(plan.advice_size(), 1);
  EXPECT_EQ(plan.advice(0).bound(), "finish_by");
  EXPECT_EQ(plan.advice(0).asked(), 200);
  EXPECT_EQ(plan.advice(0).needed(), 260);
  ASSERT_EQ(plan.nearest_size(), 3);
  EXPECT_EQ(plan.nearest(0).id(), "cccccccc01");

  // Nor is one of which nobody can say.
  plan = MakePlan();
  scheduler::Outlook unknown = OneDevice(60);
  unknown.occupants[0].seconds_left = std::nullopt;
  AddTimes(fifo, unknown, Asking("1980-01-01T00:00:00Z"), kNow, &plan);
  EXPECT_EQ(plan.offers_size(), 0);
  EXPECT_FALSE(plan.advice(0).has_needed());
}

// The faster device is busy for longer than it saves.
TEST(Contract, OfSeveralTypesOfDevicesTheOneThatEndsFirstIsPreferred) {
  const scheduler::FifoScheduler fifo;
  lemo::v1::PlanResult plan;
  for (const char* type : {"fast", "slow"}) {
    lemo::v1::Offer& offer = *plan.add_offers() =
        MakeOffer(absl::StrCat(type, "0001"), 100 * kMiB, type[0] == 'f' ? 100 : 300);
    offer.set_device_type(type);
  }
  plan.set_preferred("fast0001");
  scheduler::Outlook outlook;
  for (const char* type : {"fast", "slow"}) {
    scheduler::Worker& worker = outlook.workers.emplace_back();
    worker.id = type;
    worker.devices.push_back({0, scheduler::DeviceKind::kCpu, 300 * kMiB});
    worker.devices.back().type = type;
  }
  for (const double busy : {100.0, 250.0}) {
    outlook.occupants = {{"jobs/x", {{"fast", {0}}}, false, 0, busy, {}}};
    AddTimes(fifo, outlook, Asking("", "fastest"), kNow, &plan);
    EXPECT_EQ(plan.preferred(), busy < 200 ? "fast0001" : "slow0001");
  }
  // Offers that are for no type are for the one that the job asks for.
  lemo::v1::PlanResult one;
  *one.add_offers() = MakeOffer("fast0001", 100 * kMiB, 100);
  JobRecord fast = Asking();
  fast.job.mutable_spec()->mutable_resources()->set_device_type("fast");
  AddTimes(fifo, outlook, fast, kNow, &one);
  EXPECT_EQ(one.offers(0).start_time().seconds(), 1'000'250);

  const Acceptance acceptance = Accept(Asking().job.spec(), plan, kNow);
  ASSERT_TRUE(acceptance.contract.has_value());
  lemo::v1::JobSpec spec;
  ApplyContract(*acceptance.contract, &spec);
  EXPECT_EQ(spec.resources().device_type(), "slow");
}

TEST(Contract, TheOfferThatIsPreferredIsTaken) {
  lemo::v1::JobSpec spec;
  spec.mutable_plan();
  const Acceptance accepted = Accept(spec, MakePlan(), kNow);
  ASSERT_TRUE(accepted.contract.has_value());
  EXPECT_EQ(accepted.contract->offer().id(), "aaaaaaaa01");
  EXPECT_EQ(accepted.contract->memory_bytes(), 100 * kMiB);
  EXPECT_EQ(accepted.contract->accept_time().seconds(), 1'000'000);

  lemo::v1::PlanResult nothing;
  lemo::v1::BoundAdvice& advice = *nothing.add_advice();
  advice.set_bound("max_memory_bytes");
  advice.set_asked(1024);
  advice.set_needed(static_cast<double>(2 * kMiB));
  const Acceptance refused = Accept(spec, nothing, kNow);
  EXPECT_FALSE(refused.contract.has_value());
  EXPECT_EQ(refused.failure.kind(), Failure::USER_ERROR);
  ASSERT_THAT(refused.failure.violations(), SizeIs(1));
  EXPECT_EQ(refused.failure.violations(0).field(), "plan.max_memory_bytes");
  EXPECT_THAT(refused.failure.violations(0).reason(), HasSubstr("is 1.0 KiB; 2.0 MiB would do"));

  spec.mutable_plan()->set_offer("abcdabcd");
  const Acceptance several = Accept(spec, MakePlan(), kNow);
  EXPECT_FALSE(several.contract.has_value());
  EXPECT_EQ(several.failure.violations(0).field(), "plan.offer");
}

TEST(Contract, SetsWhatTheOfferFixesAndNothingElse) {
  lemo::v1::JobSpec spec;
  spec.mutable_run()->mutable_train()->set_steps(7);
  spec.mutable_run()->mutable_memory()->set_mlp_tile_rows(64);
  spec.mutable_run()->mutable_memory()->add_layers()->set_policy("all");
  spec.mutable_run()->mutable_tokens()->add_keep(0.5);
  spec.mutable_resources()->set_min_ranks(1);
  lemo::v1::Contract contract = MakeContract(300 * kMiB);
  ApplyContract(contract, &spec);
  EXPECT_EQ(spec.run().train().steps(), 7);
  EXPECT_EQ(spec.run().train().micro_batch_tokens(), 1024);
  EXPECT_EQ(spec.run().data().max_length(), 512);
  EXPECT_EQ(spec.run().memory().mlp_tile_rows(), 64);
  EXPECT_EQ(spec.run().memory().policy(), "mlp");
  ASSERT_EQ(spec.run().memory().layers_size(), 1);
  EXPECT_EQ(spec.run().memory().layers(0).policy(), "input");
  EXPECT_THAT(spec.run().tokens().keep(), ElementsAre(0.5));
  EXPECT_EQ(spec.resources().memory_bytes(), 300 * kMiB);
  EXPECT_EQ(spec.resources().device(), "cpu");
  EXPECT_EQ(spec.resources().ranks(), 1);
  EXPECT_FALSE(spec.resources().has_min_ranks());
  // An offer that leaves out more, and a dense one.
  contract.mutable_offer()->mutable_overrides()->mutable_tokens()->add_keep(0.25);
  ApplyContract(contract, &spec);
  EXPECT_THAT(spec.run().tokens().keep(), ElementsAre(0.25));
  contract.mutable_offer()->mutable_overrides()->clear_tokens();
  contract.mutable_offer()->mutable_overrides()->mutable_tokens()->set_policy("dense");
  ApplyContract(contract, &spec);
  EXPECT_EQ(spec.run().tokens().policy(), "dense");
  EXPECT_THAT(spec.run().tokens().keep(), IsEmpty());
}

JobRecord WithModel(const std::string& sha256, const std::string& path = "/models/m") {
  JobRecord record;
  record.model_path = path;
  record.job.mutable_spec()->mutable_run()->mutable_tuner()->mutable_lora();
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.json"}) {
    lemo::v1::ModelFile& file = record.model_files.emplace_back();
    file.set_path(name);
    file.set_sha256(sha256);
  }
  return record;
}

lemo::v1::Contract Named(const JobRecord& record, lemo::v1::Contract contract) {
  NameBase(record, &contract);
  return contract;
}

TEST(Contract, NamesTheWeightsThatItHasInCommonWithOthers) {
  lemo::v1::Contract contract = MakeContract(300 * kMiB);
  // Beside them networks that choose rows, which each job has for itself.
  contract.mutable_offer()->mutable_high()->set_weights(210 * kMiB);
  contract.mutable_offer()->mutable_high()->set_base(200 * kMiB);
  const JobRecord record = WithModel("aa");
  const lemo::v1::Contract named = Named(record, contract);
  EXPECT_THAT(named.base(), SizeIs(32));
  EXPECT_EQ(named.base_bytes(), 200 * kMiB);
  // Whatever is tuned on it, and however.
  JobRecord other = WithModel("aa");
  other.job.mutable_spec()->mutable_run()->mutable_tuner()->mutable_lora()->set_rank(64);
  other.model_files[2].set_sha256("another tokenizer");
  contract.mutable_offer()->mutable_overrides()->mutable_data()->set_max_length(99);
  EXPECT_EQ(Named(other, contract).base(), named.base());
  // Other weights, another place of them, another type.
  EXPECT_NE(Named(WithModel("bb"), contract).base(), named.base());
  EXPECT_NE(Named(WithModel("aa", "/models/copy"), contract).base(), named.base());
  lemo::v1::Contract other_type = contract;
  other_type.mutable_offer()->mutable_overrides()->mutable_model()->set_compute_type("bfloat16");
  EXPECT_NE(Named(record, other_type).base(), named.base());
}

TEST(Contract, NamesNoWeightsThatAreARunsOwn) {
  lemo::v1::Contract contract = MakeContract(300 * kMiB);
  contract.mutable_offer()->mutable_high()->set_base(200 * kMiB);
  JobRecord record = WithModel("aa");
  record.job.mutable_spec()->mutable_run()->mutable_tuner()->mutable_full();
  EXPECT_EQ(Named(record, contract).base(), "");
  record = WithModel("aa");
  record.job.mutable_spec()->mutable_run()->mutable_model()->mutable_random_init();
  EXPECT_EQ(Named(record, contract).base(), "");
  record = WithModel("");  // of a version without checksums
  EXPECT_EQ(Named(record, contract).base(), "");
  record = WithModel("aa");
  lemo::v1::Contract other = contract;
  other.mutable_offer()->mutable_overrides()->mutable_parallel()->set_tensor(2);
  EXPECT_EQ(Named(record, other).base(), "");
  other = contract;
  other.mutable_offer()->set_device("cuda");
  EXPECT_EQ(Named(record, other).base(), "");
  other = contract;
  other.mutable_offer()->mutable_overrides()->mutable_model()->set_compute_type("auto");
  EXPECT_EQ(Named(record, other).base_bytes(), 0);
}

// What a run took, beside what its offer foretold; nothing of runs that tell nothing of that.
TEST(Contract, AFinishedRunTellsOfThePlanner) {
  lemo::v1::Job job;
  job.set_name("jobs/a");
  *job.mutable_contract() = MakeContract(kMiB);
  lemo::v1::RunForecast& foretold = *job.mutable_contract()->mutable_offer()->mutable_forecast();
  foretold.set_family("llama");
  foretold.set_rates("01234567");
  foretold.set_predicted_step_seconds(2);
  job.mutable_end_time()->set_seconds(77);
  lemo::v1::ResultEvent& result = *job.mutable_result();
  result.set_steps(10);
  result.set_seconds(40);
  result.mutable_peak_bytes()->set_total(5 * kMiB);
  EXPECT_EQ(RunTimeOf(job), std::nullopt);
  job.set_state(lemo::v1::Job::SUCCEEDED);
  // Of a run that tells no mean of its own the mean of all its steps.
  ASSERT_TRUE(RunTimeOf(job).has_value());
  EXPECT_EQ(RunTimeOf(job)->forecast().measured_step_seconds(), 4);
  result.mutable_forecast()->set_measured_step_seconds(3);
  result.mutable_forecast()->set_predicted_step_seconds(99);  // the worker's own, by other rates
  const lemo::v1::RunTime run = *RunTimeOf(job);
  EXPECT_EQ(run.job(), "jobs/a");
  EXPECT_EQ(run.end_time().seconds(), 77);
  EXPECT_EQ(run.forecast().family(), "llama");
  EXPECT_EQ(run.forecast().rates(), "01234567");
  EXPECT_EQ(run.forecast().predicted_step_seconds(), 2);
  EXPECT_EQ(run.forecast().measured_step_seconds(), 3);
  EXPECT_EQ(run.forecast().measured_peak_bytes(), 5 * kMiB);
  foretold.clear_predicted_step_seconds();
  EXPECT_EQ(RunTimeOf(job), std::nullopt);
}

class ContractCoreTest : public CoreTest {
 protected:
  void Plan(const std::string& job) {
    Submitted event;
    event.record.job.set_name(job);
    event.record.job.mutable_spec()->mutable_plan()->set_prefer("smallest");
    ASSERT_TRUE(Ask(event).ok());
  }
  void Accept(const std::string& job, int64_t bytes, double seconds = 100) {
    Do(Validated{job, std::nullopt, 0, MakeContract(bytes, seconds)});
  }
  void ConnectWithMemory(int64_t session, std::vector<int64_t> bytes) {
    AgentConnected event;
    event.session = session;
    event.hello.set_worker(kWorker);
    for (size_t i = 0; i < bytes.size(); ++i) {
      lemo::v1::Device& device = *event.hello.add_devices();
      device.set_index(static_cast<int>(i));
      device.set_kind(lemo::v1::Device::CPU);
      device.set_memory_bytes(bytes[i]);
    }
    Do(event);
  }
};

TEST_F(ContractCoreTest, AJobWithAWishIsPlannedAndThenQueuedUnderItsContract) {
  Plan(kJob);
  EXPECT_EQ(State(), Job::PLANNING);
  EXPECT_EQ(Count<StartValidation>(), 1);
  Accept(kJob, 100 * kMiB);
  EXPECT_EQ(State(), Job::QUEUED);
  EXPECT_EQ(Stored().contract().memory_bytes(), 100 * kMiB);
  EXPECT_EQ(Stored().contract().offer().id(), "0123456789abcdef");
  EXPECT_EQ(Stored().spec().resources().memory_bytes(), 100 * kMiB);
  EXPECT_EQ(Stored().spec().run().memory().policy(), "mlp");
  ConnectWithMemory(1, {200 * kMiB});
  ASSERT_EQ(State(), Job::STARTING);
  for (const CoordinatorMessage& message : Sent(1)) {
    if (!message.has_assign()) continue;
    EXPECT_EQ(message.assign().contract_bytes(), 100 * kMiB);
    EXPECT_EQ(message.assign().run().data().max_length(), 512);
  }
}

TEST_F(ContractCoreTest, APlanThatCameWithoutAnOfferIsOurFault) {
  Plan(kJob);
  Do(Validated{kJob, std::nullopt, 0});
  EXPECT_EQ(State(), Job::FAILED);
  EXPECT_EQ(Stored().failure().kind(), Failure::SYSTEM_ERROR);
}

TEST_F(ContractCoreTest, CanBePausedAndCancelledWhileItIsPlanned) {
  Plan(kJob);
  EXPECT_TRUE(Ask(PauseRequested{kJob}).ok());
  EXPECT_EQ(State(), Job::PLANNING);
  EXPECT_EQ(Stored().stop_request(), Job::STOP_PAUSE);
  Accept(kJob, 100 * kMiB);
  EXPECT_EQ(State(), Job::PAUSED);
  EXPECT_TRUE(Stored().has_contract());

  Plan("jobs/2");
  EXPECT_TRUE(Ask(CancelRequested{"jobs/2"}).ok());
  EXPECT_EQ(State("jobs/2"), Job::CANCELLED);
  EXPECT_EQ(Count<StopValidation>(), 1);
}

TEST_F(ContractCoreTest, IsPlannedAgainByTheNextCoordinator) {
  Plan(kJob);
  Core next{options_, &scheduler_};
  const std::vector<Effect> effects = next.Recover({stored_.at(kJob)}, {}, now_);
  EXPECT_TRUE(std::any_of(effects.begin(), effects.end(), [](const Effect& effect) {
    return std::holds_alternative<StartValidation>(effect);
  }));
}

TEST_F(ContractCoreTest, JobsShareADeviceByContractAndOnlySo) {
  ConnectWithMemory(1, {300 * kMiB});
  for (const auto& [job, bytes] : std::vector<std::pair<std::string, int64_t>>{
           {"jobs/1", 100 * kMiB}, {"jobs/2", 200 * kMiB}, {"jobs/3", 1 * kMiB}}) {
    Plan(job);
    Accept(job, bytes);
  }
  Queue("jobs/4");
  EXPECT_EQ(State("jobs/1"), Job::STARTING);
  EXPECT_EQ(State("jobs/2"), Job::STARTING);
  EXPECT_EQ(State("jobs/3"), Job::QUEUED);
  EXPECT_EQ(Stored("jobs/3").reason_code(), Job::DEVICES_BUSY);
  EXPECT_EQ(State("jobs/4"), Job::QUEUED);
  // What one leaves the next can have; whoever wants the device for itself waits for all.
  EXPECT_TRUE(Ask(CancelRequested{"jobs/1"}).ok());
  AgentMessage message;
  *message.mutable_ended()->mutable_id() = Id(1, "jobs/1");
  message.mutable_ended()->set_outcome(AttemptEnded::STOPPED);
  Say(1, message);
  EXPECT_EQ(State("jobs/1"), Job::CANCELLED);
  EXPECT_EQ(State("jobs/3"), Job::STARTING);
  EXPECT_EQ(State("jobs/4"), Job::QUEUED);
}

// Two jobs of 100 MiB, 80 of which are one base: 120 together, where the worker shares bases.
TEST_F(ContractCoreTest, ABaseCountsOnceWhereItIsOnce) {
  for (const bool shares : {true, false}) {
    SCOPED_TRACE(shares);
    const std::string worker = shares ? "workers/shares" : "workers/does-not";
    AgentConnected event;
    event.session = shares ? 1 : 2;
    event.hello.set_worker(worker);
    lemo::v1::Device& device = *event.hello.add_devices();
    device.set_kind(lemo::v1::Device::CPU);
    device.set_memory_bytes(130 * kMiB);
    device.set_shares_bases(shares);
    Do(event);
    const std::string one = absl::StrCat("jobs/one-", shares),
                      two = absl::StrCat("jobs/two-", shares);
    for (const std::string& job : {one, two}) {
      Submitted submitted;
      submitted.record = WithModel("aa");
      submitted.record.job.set_name(job);
      submitted.record.job.mutable_spec()->mutable_plan();
      ASSERT_TRUE(Ask(submitted).ok());
      lemo::v1::Contract contract = MakeContract(100 * kMiB);
      contract.mutable_offer()->mutable_high()->set_base(80 * kMiB);
      Do(Validated{job, std::nullopt, 0, contract});
      EXPECT_EQ(Stored(job).contract().base_bytes(), 80 * kMiB);
    }
    EXPECT_EQ(State(one), Job::STARTING);
    EXPECT_EQ(State(two), shares ? Job::STARTING : Job::QUEUED);
  }
}

TEST_F(ContractCoreTest, AContractSaysHowLongItsJobWillRun) {
  ConnectWithMemory(1, {300 * kMiB});
  Plan("jobs/1");
  Accept("jobs/1", 100 * kMiB, 50);
  Queue("jobs/2");
  const scheduler::Outlook outlook = core_.MakeOutlook();
  ASSERT_THAT(outlook.workers, SizeIs(1));
  EXPECT_EQ(outlook.workers[0].devices[0].shared_bytes, 0);
  ASSERT_THAT(outlook.occupants, SizeIs(1));
  EXPECT_TRUE(outlook.occupants[0].shares);
  EXPECT_EQ(outlook.occupants[0].memory_bytes, 100 * kMiB);
  EXPECT_EQ(outlook.occupants[0].seconds_left, 50);
  ASSERT_THAT(outlook.queue, SizeIs(1));
  EXPECT_FALSE(outlook.queue[0].request.shares);
  EXPECT_EQ(outlook.queue[0].run_seconds, std::nullopt);
}

}  // namespace
}  // namespace lemo::coordinator
