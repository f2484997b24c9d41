#include "coordinator/runtime/validator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <future>
#include <string>
#include <vector>

#include "common/files.h"
#include "google/protobuf/util/delimited_message_util.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;
using lemo::v1::Failure;

// A shell script stands in for lemo-train; each of its lives adds a line to `lives`.
class ValidatorTest : public testing::Test {
 protected:
  void SetUp() override { fs::create_directories(directory_); }
  void TearDown() override { fs::remove_all(directory_); }

  std::string Path(const char* name) const { return (directory_ / name).string(); }

  ValidatorOptions Options(const std::string& script, int retries) {
    std::ofstream(Path("train")) << "#!/bin/sh\necho >> " << Path("lives") << "\n" << script;
    fs::permissions(Path("train"), fs::perms::owner_all);
    ValidatorOptions options;
    options.train_program = Path("train");
    options.scratch = Path("scratch");
    options.retry_pause = absl::Milliseconds(1);
    options.retries = retries;
    options.rates_file = Path("rates.json");
    options.count_offers = [this](const char* outcome) { outcomes_.push_back(outcome); };
    return options;
  }

  // What comes of a Start with that script.
  Finding Find(const std::string& script, const lemo::v1::PlanSpec* plan, int retries = 0) {
    std::promise<Finding> promise;
    Validator validator(
        Options(script, retries), /*artifacts=*/nullptr,
        [&promise](const std::string&, Finding finding) { promise.set_value(std::move(finding)); });
    JobRecord record;
    record.job.set_name("jobs/a");
    if (plan != nullptr) *record.job.mutable_spec()->mutable_plan() = *plan;
    validator.Start(record);
    return promise.get_future().get();
  }
  Verdict Validate(const std::string& script, int retries) {
    return Find(script, nullptr, retries).verdict;
  }

  // A script that plans: keeps what it is asked in `asked`, and answers with what `rates_of` makes
  // of that, or with rates that it has never measured before.
  std::string Planner(const std::string& offers) const {
    return "[ \"$2 $3 $4\" = \"--plan --json --plan-options\" ] || exit 9\n"
           "cp $5 " +
           Path("asked") + "\nrate=$(sed -n 's/.*\"products\": //p' $5 | tr -d ' ,')\n" +
           "[ -n \"$rate\" ] || rate=$(wc -l < " + Path("lives") + ").0\n" +
           "echo \"{\\\"offers\\\": " + offers +
           ", \\\"rates\\\": {\\\"type\\\": \\\"cpu\\\", \\\"products\\\": $rate, "
           "\\\"attention\\\": 1.0}, \\\"preferred\\\": \\\"0123456789abcdef\\\"}\"\n";
  }

  // A job that asks for offers.
  static JobRecord Planned() {
    JobRecord record;
    record.job.set_name("jobs/a");
    record.job.mutable_spec()->mutable_plan();
    return record;
  }

  int64_t Lives() const {
    const std::string lines = ReadFile(Path("lives"), 1000).value_or("");
    return std::count(lines.begin(), lines.end(), '\n');
  }

  std::vector<std::string> outcomes_;
  const fs::path directory_ =
      fs::path(testing::TempDir()) / ("lemo_validator_" + std::to_string(::getpid()));
};

TEST_F(ValidatorTest, ACheckThatWasKilledIsRunAgain) {
  EXPECT_EQ(Validate("[ $(wc -l < " + Path("lives") + ") -ge 3 ] || kill -9 $$\n", /*retries=*/5),
            std::nullopt);
  EXPECT_EQ(Lives(), 3);
}

TEST_F(ValidatorTest, GivesUpAfterItsRetries) {
  const Verdict verdict = Validate("kill -9 $$\n", /*retries=*/2);
  ASSERT_TRUE(verdict.has_value());
  EXPECT_EQ(verdict->kind(), Failure::SYSTEM_ERROR);
  EXPECT_EQ(Lives(), 3);
}

TEST_F(ValidatorTest, AFullDiskIsNotTheUsersFault) {
  lemo::v1::RunEvent event;
  event.mutable_error()->set_message(std::string("cannot write out: ") + std::strerror(ENOSPC));
  {
    std::ofstream said(Path("said"), std::ios::binary);
    google::protobuf::util::SerializeDelimitedToOstream(event, &said);
  }
  const std::string script = "cat " + Path("said") + " >&3\nexit 2\n";
  const Verdict verdict = Validate(script, /*retries=*/1);
  ASSERT_TRUE(verdict.has_value());
  EXPECT_EQ(verdict->kind(), Failure::SYSTEM_ERROR);
  EXPECT_EQ(Lives(), 2);
}

TEST_F(ValidatorTest, AUsersFaultIsNotTriedAgain) {
  lemo::v1::RunEvent event;
  event.mutable_error()->set_message("steps: must be above 0");
  {
    std::ofstream said(Path("said"), std::ios::binary);
    google::protobuf::util::SerializeDelimitedToOstream(event, &said);
  }
  const Verdict verdict = Validate("cat " + Path("said") + " >&3\nexit 2\n", /*retries=*/5);
  ASSERT_TRUE(verdict.has_value());
  EXPECT_EQ(verdict->kind(), Failure::USER_ERROR);
  EXPECT_EQ(Lives(), 1);
}

constexpr char kOffer[] =
    "[{\\\"id\\\": \\\"0123456789abcdef\\\", \\\"ranks\\\": 1, \\\"high\\\": {\\\"total\\\": 77}}]";

TEST_F(ValidatorTest, AJobWithAWishComesBackWithAContract) {
  lemo::v1::PlanSpec plan;
  plan.set_prefer("smallest");
  plan.set_max_memory_bytes(1000);
  const Finding finding = Find(Planner(kOffer), &plan);
  ASSERT_FALSE(finding.verdict.has_value()) << finding.verdict->message();
  ASSERT_TRUE(finding.contract.has_value());
  EXPECT_EQ(finding.contract->memory_bytes(), 77);
  EXPECT_EQ(finding.contract->offer().id(), "0123456789abcdef");
  const std::string asked = ReadFile(Path("asked"), 10000).value_or("");
  EXPECT_THAT(asked, testing::HasSubstr("\"prefer\": \"smallest\""));
  EXPECT_THAT(asked, testing::HasSubstr("\"max_memory_bytes\": 1000"));
  EXPECT_THAT(asked, testing::HasSubstr("\"ranks\": ["));
  EXPECT_THAT(outcomes_, testing::ElementsAre("accepted"));
}

// With other rates the same request would have other offers and ids.
TEST_F(ValidatorTest, RatesAreMeasuredOnceAndOutliveTheCoordinator) {
  const lemo::v1::PlanSpec plan;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(Find(Planner(kOffer), &plan).contract.has_value());
  EXPECT_EQ(Lives(), 3);
  lemo::v1::PlanResult result;
  Validator validator(Options(Planner(kOffer), 0), nullptr, [](const std::string&, Finding) {});
  EXPECT_EQ(validator.Plan(Planned(), &result), std::nullopt);
  EXPECT_EQ(result.rates().products(), 1);  // of the first life
  EXPECT_EQ(result.offers_size(), 1);
  EXPECT_EQ(outcomes_.back(), "made");
}

// As when somebody calibrates beside a coordinator that runs.
TEST_F(ValidatorTest, RatesThatSomebodyElseWroteAreTaken) {
  Validator validator(Options(Planner(kOffer), 0), nullptr, [](const std::string&, Finding) {});
  lemo::v1::PlanResult result;
  EXPECT_EQ(validator.Plan(Planned(), &result), std::nullopt);
  EXPECT_EQ(result.rates().products(), 1);
  ASSERT_TRUE(WriteFileAtomic(Path("rates.json"),
                              "{\"rates\": [{\"type\": \"cpu\", \"products\": 7.0, "
                              "\"attention\": 1.0}]}\n")
                  .ok());
  fs::last_write_time(Path("rates.json"), fs::file_time_type::clock::now() + std::chrono::hours(1));
  EXPECT_EQ(validator.Plan(Planned(), &result), std::nullopt);
  EXPECT_EQ(result.rates().products(), 7);
}

// Of a worker they come before those of this machine, and are not taken for its own.
TEST_F(ValidatorTest, WorkersRatesComeFirstAndAreNotKept) {
  ValidatorOptions options = Options(Planner(kOffer), 0);
  for (const bool several : {false, true}) {
    lemo::v1::PlanOptions devices;
    lemo::v1::PlannedDevice& device = several ? *devices.add_devices() : *devices.mutable_device();
    device.set_threads(4);
    device.set_most_threads(64);
    lemo::v1::DeviceRates& rates = *device.add_rates();
    rates.set_type("cpu");
    rates.set_products(9);
    rates.set_attention(1);
    options.devices = [&devices](const std::string& type) {
      EXPECT_EQ(type, "NVIDIA H200");
      return devices;
    };
    Validator validator(options, nullptr, [](const std::string&, Finding) {});
    JobRecord record = Planned();
    record.job.mutable_spec()->mutable_resources()->set_device_type("NVIDIA H200");
    lemo::v1::PlanResult result;
    EXPECT_EQ(validator.Plan(record, &result), std::nullopt);
    EXPECT_EQ(result.rates().products(), 9);
    EXPECT_FALSE(fs::exists(Path("rates.json")));
    EXPECT_THAT(ReadFile(Path("asked"), 10000).value_or(""),
                testing::HasSubstr("\"most_threads\": 64"));
  }
}

TEST_F(ValidatorTest, APlanIsToldOfFinishedRuns) {
  ValidatorOptions options = Options(Planner(kOffer), 0);
  options.history = [] {
    lemo::v1::RunTime run;
    run.set_job("jobs/finished");
    run.mutable_forecast()->set_measured_step_seconds(1.5);
    return std::vector<lemo::v1::RunTime>{run};
  };
  Validator validator(options, nullptr, [](const std::string&, Finding) {});
  lemo::v1::PlanResult result;
  EXPECT_EQ(validator.Plan(Planned(), &result), std::nullopt);
  const std::string asked = ReadFile(Path("asked"), 10000).value_or("");
  EXPECT_THAT(asked, testing::HasSubstr("\"job\": \"jobs/finished\""));
  EXPECT_THAT(asked, testing::HasSubstr("\"measured_step_seconds\": 1.5"));
}

TEST_F(ValidatorTest, AnOfferThatIsNotThereIsRefusedWithWhatToDo) {
  lemo::v1::RunEvent event;
  lemo::v1::Violation& violation = *event.mutable_error()->add_violations();
  violation.set_field("plan.offer");
  violation.set_reason("no offer begins so");
  {
    std::ofstream said(Path("said"), std::ios::binary);
    google::protobuf::util::SerializeDelimitedToOstream(event, &said);
  }
  lemo::v1::PlanSpec plan;
  plan.set_offer("0123456789");
  const Finding finding = Find("cat " + Path("said") + " >&3\nexit 2\n", &plan);
  ASSERT_TRUE(finding.verdict.has_value());
  EXPECT_EQ(finding.verdict->kind(), Failure::USER_ERROR);
  EXPECT_THAT(finding.verdict->message(), testing::HasSubstr("0123456789"));
  EXPECT_THAT(finding.verdict->advice(), testing::HasSubstr("lemo plan"));
  ASSERT_EQ(finding.verdict->violations_size(), 1);
  EXPECT_EQ(finding.verdict->violations(0).field(), "plan.offer");
  EXPECT_THAT(outcomes_, testing::ElementsAre("refused"));
}

TEST_F(ValidatorTest, NothingWithinTheBoundsIsTheUsersFault) {
  const lemo::v1::PlanSpec plan;
  const Finding finding = Find(Planner("[]"), &plan);
  ASSERT_TRUE(finding.verdict.has_value());
  EXPECT_EQ(finding.verdict->kind(), Failure::USER_ERROR);
  EXPECT_THAT(outcomes_, testing::ElementsAre("none"));
}

TEST_F(ValidatorTest, APlanThatIsNoneIsNotTheUsersFault) {
  const lemo::v1::PlanSpec plan;
  const Finding finding = Find("echo nonsense\n", &plan);
  ASSERT_TRUE(finding.verdict.has_value());
  EXPECT_EQ(finding.verdict->kind(), Failure::SYSTEM_ERROR);
}

}  // namespace
}  // namespace lemo::coordinator
