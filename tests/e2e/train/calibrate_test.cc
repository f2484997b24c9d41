// lemo-train calibrate, and what plans and runs make of its rates. No time is asserted, only that
// there is one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "tests/e2e/train/workspace.h"

namespace lemo::train {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

// What the children of this test take as a person's own rates.
class ScopedRatesFile {
 public:
  explicit ScopedRatesFile(const std::string& file) {
    ::setenv("LEMO_RATES", file.c_str(), /*overwrite=*/1);
  }
  ~ScopedRatesFile() { ::unsetenv("LEMO_RATES"); }
  ScopedRatesFile(const ScopedRatesFile&) = delete;
  ScopedRatesFile& operator=(const ScopedRatesFile&) = delete;
};

Outcome Calibrate(const Workspace& workspace, std::vector<std::string> args = {}) {
  args.insert(args.begin(),
              {"calibrate", "--device", "cpu", "--compute-type", "float32", "--seconds", "0"});
  return workspace.RunPlain(args);
}

json FileOf(const Workspace& workspace, const std::string& name) {
  return json::parse(ReadAll(workspace.path() / name));
}

TEST(Calibrate, MeasuresEveryOperatorAndKeepsIt) {
  const Workspace workspace;
  const Outcome first = Calibrate(workspace, {"--rates", "below/rates.json"});
  ASSERT_EQ(first.exit_code, 0) << first.out << first.err;
  EXPECT_THAT(first.out,
              AllOf(HasSubstr("attention_backward"), HasSubstr("a layer and micro-batch"),
                    HasSubstr("written to below/rates.json")));
  const json file = FileOf(workspace, "below/rates.json");
  ASSERT_EQ(file.at("rates").size(), 1u);
  const json& rates = file.at("rates")[0];
  EXPECT_EQ(rates.at("type"), "cpu");
  EXPECT_EQ(rates.at("compute_type"), "float32");
  EXPECT_GT(rates.at("products").get<double>(), 0);
  EXPECT_GT(rates.at("attention").get<double>(), 0);
  const json& calibration = rates.at("calibration");
  EXPECT_FALSE(calibration.at("version").get<std::string>().empty());
  EXPECT_TRUE(calibration.contains("time"));
  std::set<std::string> names;
  for (const json& of : calibration.at("operators")) {
    names.insert(of.at("name"));
    double before = 0;
    for (const json& point : of.at("points")) {
      EXPECT_GT(point.at("size").get<double>(), before) << of;
      before = point.at("size");
      EXPECT_TRUE(std::isfinite(point.at("rate").get<double>())) << of;
      EXPECT_GT(point.at("rate").get<double>(), 0) << of;
    }
  }
  EXPECT_EQ(names,
            (std::set<std::string>{"products", "attention", "attention_backward", "norm",
                                   "norm_backward", "activation", "activation_backward", "rotation",
                                   "gather", "scatter", "copy", "loss", "update"}));
  // Again, as a program would have it: in the place of the first.
  const Outcome again = Calibrate(workspace, {"--rates", "below/rates.json", "--json"});
  ASSERT_EQ(again.exit_code, 0) << again.err;
  const json after = FileOf(workspace, "below/rates.json");
  ASSERT_EQ(after.at("rates").size(), 1u);
  EXPECT_EQ(after.at("rates")[0], json::parse(again.out));
}

TEST(Calibrate, PlansAndRunsStandOnIt) {
  const Workspace workspace;
  const ScopedRatesFile own((workspace.path() / "rates.json").string());
  json spec = Workspace::Spec();
  const Outcome bare = workspace.Run(spec);
  ASSERT_EQ(bare.exit_code, 0) << bare.out << bare.err;
  const json unforetold = bare.Last("result").at("forecast");
  EXPECT_EQ(unforetold.at("predicted_step_seconds"), 0);
  EXPECT_GT(unforetold.at("measured_step_seconds").get<double>(), 0);

  ASSERT_EQ(Calibrate(workspace).exit_code, 0);
  spec["output"]["dir"] = "second";
  const Outcome run = workspace.Run(spec);
  ASSERT_EQ(run.exit_code, 0) << run.out << run.err;
  const json forecast = run.Last("result").at("forecast");
  EXPECT_GT(forecast.at("predicted_step_seconds").get<double>(), 0);
  EXPECT_GT(forecast.at("measured_step_seconds").get<double>(), 0);
  EXPECT_EQ(forecast.at("family"), "llama");
  EXPECT_EQ(forecast.at("measured_peak_bytes"), run.Last("result").at("peak_bytes").at("total"));
  EXPECT_LE(forecast.at("measured_peak_bytes"), forecast.at("high_peak_bytes"));
  EXPECT_THAT(ReadAll(workspace.path() / "second/report.html"), HasSubstr("Foretold before"));
  const json report = FileOf(workspace, "second/report.json");
  EXPECT_EQ(report.at("result").at("forecast"), forecast);

  const Outcome plan = workspace.Run(spec, {"--plan", "--json"});
  ASSERT_EQ(plan.exit_code, 0) << plan.err;
  const json offers = json::parse(plan.out);
  EXPECT_EQ(offers.at("rates"), FileOf(workspace, "rates.json").at("rates")[0]);
  const json& offer = offers.at("offers")[0];
  EXPECT_EQ(offer.at("forecast").at("rates"), forecast.at("rates"));
  EXPECT_EQ(offer.at("forecast").at("shape_class"), forecast.at("shape_class"));
  double seconds = offer.at("step").at("overhead").get<double>();
  for (const json& of : offer.at("operators")) seconds += of.value("seconds", 0.0);
  EXPECT_NEAR(seconds / offer.at("step").at("total").get<double>(), 1, 1e-9);
  EXPECT_THAT(workspace.Run(spec, {"--plan"}).out,
              AllOf(HasSubstr("measured by operator on"), HasSubstr("attention_backward")));

  // Two finished runs that took one and a half times as long.
  json finished = forecast;
  finished["predicted_step_seconds"] = 2.0;
  finished["measured_step_seconds"] = 3.0;
  workspace.Write("options.json", json({{"history",
                                         {{{"job", "jobs/a"}, {"forecast", finished}},
                                          {{"job", "jobs/b"}, {"forecast", finished}}}}})
                                      .dump());
  const Outcome corrected =
      workspace.Run(spec, {"--plan", "--json", "--plan-options", "options.json"});
  ASSERT_EQ(corrected.exit_code, 0) << corrected.err;
  const json later = json::parse(corrected.out);
  EXPECT_EQ(later.at("offers")[0].at("id"), offer.at("id"));
  EXPECT_EQ(later.at("offers")[0].at("correction").at("runs"), 2);
  EXPECT_NEAR(later.at("offers")[0].at("step").at("total").get<double>() /
                  offer.at("step").at("total").get<double>(),
              1.5, 1e-9);
  EXPECT_EQ(later.at("history").size(), 2u);
}

// A coordinator plans for workers that are other machines: with their rates, and bytes for as many
// threads as the one with most has.
TEST(Calibrate, PlansForAnotherMachine) {
  const Workspace workspace;
  const ScopedRatesFile own((workspace.path() / "rates.json").string());
  ASSERT_EQ(Calibrate(workspace).exit_code, 0);
  const json spec = Workspace::Spec();
  const auto plan_for = [&](const json& device, const json& rates) {
    json options = {{"device", device}};
    if (!rates.is_null()) options["rates"] = {rates};
    workspace.Write("options.json", options.dump());
    const Outcome plan =
        workspace.Run(spec, {"--plan", "--json", "--plan-options", "options.json"});
    EXPECT_EQ(plan.exit_code, 0) << plan.err;
    return json::parse(plan.out);
  };
  const json here = plan_for(json::object(), nullptr);
  json rates = FileOf(workspace, "rates.json").at("rates")[0];
  rates["threads"] = 77;
  rates["products"] = rates.at("products").get<double>() / 2;
  const json device = {{"threads", 77}, {"most_threads", 99}, {"source", "workers/a (far)"}};
  const json there = plan_for(device, rates);
  EXPECT_EQ(there.at("rates"), rates);
  EXPECT_THAT(there.at("notes").dump(), HasSubstr("times are those of workers/a (far)"));
  // Scratch of attention, of every thread.
  EXPECT_GT(there.at("offers")[0].at("high").at("transient").get<int64_t>(),
            here.at("offers")[0].at("high").at("transient").get<int64_t>());
  // One that nobody calibrated in this type has this machine's times, and the plan says so.
  const json unknown = plan_for(device, nullptr);
  EXPECT_EQ(unknown.at("rates"), here.at("rates"));
  EXPECT_THAT(unknown.at("notes").dump(),
              HasSubstr("workers/a (far) is not calibrated in float32"));
}

TEST(Calibrate, RatesOfAnotherVersionAreNotUsed) {
  const Workspace workspace;
  const ScopedRatesFile own((workspace.path() / "rates.json").string());
  ASSERT_EQ(Calibrate(workspace).exit_code, 0);
  json file = FileOf(workspace, "rates.json");
  file["rates"][0]["calibration"]["version"] = "0.0.1";
  workspace.Write("rates.json", file.dump());
  const Outcome plan = workspace.Run(Workspace::Spec(), {"--plan", "--json"});
  ASSERT_EQ(plan.exit_code, 0) << plan.err;
  EXPECT_FALSE(json::parse(plan.out).at("rates").contains("calibration"));
  EXPECT_THAT(plan.out, HasSubstr("lemo 0.0.1 measured of this device is not used"));
}

TEST(Calibrate, FaultsAreTheUsers) {
  const Workspace workspace;
  workspace.Write("rates.json", "{\"rates\": 7}");
  const Outcome other = Calibrate(workspace, {"--rates", "rates.json"});
  EXPECT_EQ(other.exit_code, 2) << other.out;
  EXPECT_THAT(other.err, HasSubstr("rates"));
  EXPECT_EQ(ReadAll(workspace.path() / "rates.json"), "{\"rates\": 7}");
  const Outcome nowhere = Calibrate(workspace);
  EXPECT_EQ(nowhere.exit_code, 2) << nowhere.out;
  EXPECT_THAT(nowhere.err, AllOf(HasSubstr("--rates"), Not(HasSubstr("terminate"))));
  EXPECT_EQ(workspace.RunPlain({"calibrate", "--device", "abacus"}).exit_code, 2);
}

}  // namespace
}  // namespace lemo::train
